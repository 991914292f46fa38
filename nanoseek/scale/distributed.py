"""One model on several devices, on torch's own engines, under torchrun.

    torchrun --nproc_per_node 8 -m nanoseek.train --preset gpt2-124m --out runs/gpt2

Each process (*rank*) computes the gradient of its own rows of every batch. With DDP each holds the
whole model, and gradients are averaged while backward still runs. With FSDP2 each holds a slice of
every weight and optimizer state, and gathers a layer just before it is needed (ZeRO, 1910.02054,
stage 3; DeepSeek LLM §2.4 uses stage 1). The folder on disk is the same either way."""

import contextlib
import functools
import os

import torch
import torch.distributed as dist

from nanoseek.cost import parameters
from nanoseek.scale.machine import PRECISIONS, pick_device


class Ranks:
    """The processes that train one model: this one alone, or as many as torchrun started."""
    def __init__(self, config):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = self.rank == 0
        self.device = pick_device(config.device, int(os.environ.get("LOCAL_RANK", self.rank)))
        large = parameters(config.model)["total"] >= 1e9  # at 16 bytes each, a GPU is nearly full
        self.sliced = self.size > 1 and config.parallel in (["fsdp", "auto"] if large else ["fsdp"])
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def wrap(self, model, compute, precision, optimizer):
        """Return compute(model, …) as a function of a batch, with gradients over all ranks."""
        self.engine, batch_loss = model, functools.partial(compute, model)
        if self.sliced:
            if optimizer == "muon" or precision == "fp16":
                raise ValueError("fsdp takes adamw (Muon needs whole matrices) and no fp16")
            # Not at the top: the import takes a second, which a run on one device need not wait.
            from torch.distributed import fsdp
            policy = fsdp.MixedPrecisionPolicy(PRECISIONS[precision], reduce_dtype=torch.float32)
            mesh = dist.init_device_mesh(self.device.type, (self.size,))
            for part in [*model.model.layers, model]:
                fsdp.fully_shard(part, mesh=mesh, mp_policy=policy)
            fsdp.register_fsdp_forward_method(model, "hidden")  # what loss() calls
        elif self.size > 1:
            module = torch.nn.Module()
            module.model, module.forward = model, batch_loss  # DDP hooks into forward
            self.engine = batch_loss = torch.nn.parallel.DistributedDataParallel(module)
        return batch_loss

    def average_gradients(self, now):
        """Let the coming backward pass average its gradients over the ranks, or leave that."""
        if self.sliced:
            self.engine.set_requires_gradient_sync(now)
        elif self.size > 1:
            self.engine.require_backward_grad_sync = now

    def mean(self, number):
        """Return the mean over the ranks of a number, or of a tensor that holds one."""
        number = torch.as_tensor(number, dtype=torch.float32, device=self.device)
        if self.size > 1:
            dist.all_reduce(number)
        return (number / self.size).item()

    def agree(self, decide):
        """Return what decide() returns on the first rank; the others do not call it."""
        decision = [decide() if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(decision)
        return decision[0]

    def gathered(self, tensor):
        """Return a tensor whole, where it was sliced."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def whole(self, tensors):
        """Return {name: tensor} with every slice gathered, on the first rank; {} on the others."""
        gathered = ((name, self.gathered(t)) for name, t in tensors.items())  # one at a time
        return {name: t.cpu() if self.sliced else t for name, t in gathered if self.first}

    def place(self, whole, p):
        """Return a whole tensor where parameter p is, sliced as p is."""
        if not (self.sliced and whole.ndim):
            return whole.to(p.device)
        return dist.tensor.distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


@contextlib.contextmanager
def ending_together():
    """Leave the other ranks at the end; say in one line what torch says in many."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip()
        if isinstance(error, torch.OutOfMemoryError):
            raise ValueError("the device's memory is full: raise --accumulation") from None
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise ValueError(f"leave out --compile, it failed: {said.splitlines()[0]}") from None
        if isinstance(error, dist.DistError) or "gloo" in said or "peer" in said:
            raise ValueError("another rank has ended: see why, then give --resume") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
