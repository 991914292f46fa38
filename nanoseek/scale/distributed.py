"""One model on several devices, on torch's own engines, under torchrun.

    torchrun --nproc_per_node 8 -m nanoseek.train --preset gpt2-124m --out runs/gpt2

Each process (*rank*) computes the gradient of its own rows of every batch. With DDP each holds the
whole model, and gradients are averaged while backward still runs. With FSDP2 each holds a slice of
every weight and optimizer state, and a layer is gathered just before it is needed (ZeRO, arXiv
1910.02054, stage 3; DeepSeek LLM §2.4 uses stage 1). The folder on disk is the same either way.
"""

import contextlib
import functools
import os

import torch
import torch.distributed as dist

from nanoseek.model import loss

LARGE = 1_000_000_000  # parameters from which "auto" slices: 16 bytes each, a GPU's memory is near


class _Loss(torch.nn.Module):
    """DDP hooks into forward, so the loss of a batch becomes one."""

    def __init__(self, model, compute):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *batch):
        return self.compute(self.model, *batch)


class Ranks:
    """The processes that train one model: this one alone, or as many as torchrun started."""

    def __init__(self, parallel, parameters):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.first = self.rank == 0
        self.sliced = self.size > 1 and (
            parallel == "fsdp" or parallel == "auto" and parameters >= LARGE)

    def start(self, device):
        """Meet the other ranks."""
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def wrap(self, model, precision, optimizer, compute=loss):
        """Return loss(inputs, targets, document_ids), whose backward averages over the ranks.

        Slicing replaces the weights: build optimizers afterwards. ValueError if it cannot slice.
        """
        if self.sliced:
            self._slice(model, precision, optimizer)
        elif self.size > 1:
            self.engine = torch.nn.parallel.DistributedDataParallel(_Loss(model, compute))
            return self.engine
        return functools.partial(compute, model)

    def _slice(self, model, precision, optimizer):
        if optimizer == "muon" or precision == "fp16":
            raise ValueError("fsdp takes --optimizer adamw (Muon needs whole matrices) and "
                             "--precision bf16 or fp32")
        # Not at the top: the import takes a second, which a run on one device need not wait.
        from torch.distributed import fsdp
        policy = fsdp.MixedPrecisionPolicy(None if precision == "fp32" else torch.bfloat16,
                                           reduce_dtype=torch.float32)
        mesh = dist.init_device_mesh(self.device.type, (self.size,))
        for module in [*model.model.layers, model]:
            fsdp.fully_shard(module, mesh=mesh, mp_policy=policy)
        fsdp.register_fsdp_forward_method(model, "hidden")  # what loss() calls
        self.engine = model

    def average_gradients(self, now):
        """Let the coming backward pass average its gradients over the ranks, or leave that."""
        if self.sliced:
            self.engine.set_requires_gradient_sync(now)
        elif self.size > 1:
            self.engine.require_backward_grad_sync = now

    def mean(self, number):
        """Return the mean over the ranks of a tensor."""
        if self.size > 1:
            dist.all_reduce(number)
        return number / self.size

    def any(self, asked):
        """Return whether `asked` is true on any rank."""
        return self.mean(torch.tensor(float(bool(asked)), device=self.device)).item() > 0

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

    def place(self, tensor, p):
        """Return a whole tensor where parameter p is, sliced as p is."""
        tensor = tensor.to(p.device)
        if self.sliced and tensor.ndim:
            from torch.distributed.tensor import distribute_tensor
            return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)
        return tensor


@contextlib.contextmanager
def ending_together():
    """Leave the other ranks at the end; put a failure of theirs, or the compiler's, in one line."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip()
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise ValueError(f"torch.compile failed ({said.splitlines()[0]}): it needs a C++ "
                             "compiler, on a GPU Triton too; or leave out --compile") from None
        if isinstance(error, dist.DistError) or "gloo" in said or "peer" in said:
            raise ValueError("another rank of this run has ended: see what it said, and start "
                             "again with --resume") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
