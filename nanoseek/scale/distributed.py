"""One model on several devices, on torch's own engines, under torchrun.

    torchrun --nproc_per_node 8 -m nanoseek.train --preset gpt2-124m --out runs/gpt2

Each process (*rank*) computes the gradient of its own rows of every batch. With DDP each holds the
whole model, and gradients are averaged while backward still runs; with FSDP2 each holds a slice of
every weight and of its optimizer state, and a layer is gathered just before it is needed (ZeRO,
arXiv 1910.02054, stage 3; DeepSeek LLM §2.4 uses stage 1). What goes to disk is the same folder
either way, so a run saved on eight ranks goes on with one.
"""

import contextlib
import functools
import os

import torch
import torch.distributed as dist
from torch import nn

from nanoseek.scale.machine import compiled_loss
from nanoseek.model import loss

LARGE = 1_000_000_000  # parameters from which "auto" slices: 16 bytes each, a GPU's memory is near
PARALLEL = ("auto", "ddp", "fsdp")


class _Loss(nn.Module):
    """DDP hooks into forward, so the loss of a batch becomes one."""

    def __init__(self, model, compute):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, inputs, targets, document_ids):
        return self.compute(self.model, inputs, targets, document_ids)


class Ranks:
    """The processes that train one model: this one alone, or as many as torchrun started."""

    def __init__(self):
        self.rank, self.size = (int(os.environ.get(name, default)) for name, default in
                                (("RANK", 0), ("WORLD_SIZE", 1)))
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.first = self.rank == 0
        self.sliced = False

    def start(self, device):
        """Meet the other ranks."""
        self.device = device
        if self.size > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def choose_engine(self, model, parallel):
        """Decide whether the ranks slice the model: "ddp", "fsdp", or "auto" by its size."""
        if parallel == "auto":
            parallel = "fsdp" if sum(p.numel() for p in model.parameters()) >= LARGE else "ddp"
        self.sliced = self.size > 1 and parallel == "fsdp"

    def wrap(self, model, device, precision, optimizer, compiled=False):
        """Return loss(inputs, targets, document_ids), whose backward averages over the ranks.

        Slicing replaces the weights of `model` in place: build optimizers only afterwards.
        Raises ValueError for what cannot be sliced.
        """
        compute = compiled_loss() if compiled else loss
        if self.size == 1:
            return functools.partial(compute, model)
        if not self.sliced:
            self.engine = nn.parallel.DistributedDataParallel(_Loss(model, compute))
            return self.engine
        if optimizer == "muon":
            raise ValueError("Muon needs whole matrices, which fsdp slices: --optimizer adamw")
        if precision == "fp16":
            raise ValueError("fsdp computes in bf16 or fp32: give one of them as --precision")
        # Not above: the import takes a second, which a run on one device need not wait.
        from torch.distributed.fsdp import (MixedPrecisionPolicy, fully_shard,
                                            register_fsdp_forward_method)
        policy = MixedPrecisionPolicy() if precision == "fp32" else \
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        mesh = dist.init_device_mesh(device.type, (self.size,))
        for module in [*model.model.layers, model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "hidden")  # what loss() calls
        self.engine = model
        return functools.partial(compute, model)

    @contextlib.contextmanager
    def accumulating(self, more):
        """Within it, gradients stay with their rank when `more` micro-batches are to come."""
        if self.size > 1 and self.sliced:
            self.engine.set_requires_gradient_sync(not more)
        with self.engine.no_sync() if self.size > 1 and more and not self.sliced else \
                contextlib.nullcontext():
            yield

    def mean(self, number):
        """Return the mean over the ranks of a tensor."""
        if self.size > 1:
            dist.all_reduce(number)
            number = number / self.size
        return number

    def any(self, asked):
        """Return whether `asked` is true on any rank."""
        if self.size == 1:
            return bool(asked)
        found = torch.tensor(float(bool(asked)), device=self.device)
        dist.all_reduce(found)
        return found.item() > 0

    @staticmethod
    def gathered(tensor):
        """Return a tensor whole, where it was sliced."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def agree(self, decide):
        """Return what decide() returns on the first rank; the others do not call it."""
        if self.size == 1:
            return decide()
        told = [decide() if self.first else None]
        dist.broadcast_object_list(told)
        return told[0]

    def whole(self, tensors):
        """Return {name: tensor} with every slice gathered, on the first rank; {} on the others."""
        found = {}
        for name, tensor in tensors.items():  # one at a time: the others need memory for one
            tensor = self.gathered(tensor)
            if self.first:
                found[name] = tensor.cpu() if self.sliced else tensor
        return found

    def place(self, tensor, p):
        """Return a whole tensor where parameter p is, sliced as p is."""
        tensor = tensor.to(p.device)
        if self.sliced and tensor.ndim:
            from torch.distributed.tensor import distribute_tensor
            return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)
        return tensor


@contextlib.contextmanager
def ending_together():
    """Turn the loss of another rank into one clear line, and take leave of the others."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "peer" in str(error)):
            raise
        raise ValueError("another rank of this run has ended: see what it said, and start again "
                         "with --resume") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
