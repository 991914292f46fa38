"""What a run computes on: its device, and by measurement its threads and its precision.

    device = pick_device("auto")                        # cuda, mps or cpu
    threads, tried = choose_threads(model, rows=8, row_length=256)
    precision, tried = choose_precision(model, device, rows=8, row_length=256)

bf16 doubles the speed of one processor and halves that of another, and two threads beside a busy
neighbour can be slower than one. Both are tried on the model itself; the run keeps the winner."""

import contextlib
import os
import time

import torch

from nanoseek.deepseek.experts import after_step
from nanoseek.model import loss, rotary_frequencies

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTH = 1.1  # how many times as fast half precision must be to be worth its lost digits


def pick_device(name, local_rank=0):
    """Return the torch device of a setting; raises ValueError for one that is not here."""
    here = {"cuda": torch.cuda.device_count(), "mps": torch.mps.device_count(), "cpu": 1}
    name = next(kind for kind in here if here[kind]) if name == "auto" else name
    number = local_rank if name == "cuda" else 0
    if number >= here.get(name, 0):
        raise ValueError(f"there is no {name} device {number}: see --device, or start fewer ranks")
    return torch.device(name, number)


def autocast(device, precision):
    """Return the context in which a model computes in fp32, bf16 or fp16; its weights stay fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def compiled_loss(**settings):
    """Return `loss` as torch.compile fuses it, anew for each shape of a batch (up to a minute)."""
    torch.compiler.assume_constant_result(rotary_frequencies)  # else powers at every position
    torch._dynamo.config.recompile_limit = 1000  # beyond it, the last rows of a ramp would be slow
    return torch.compile(loss, dynamic=False, **settings)


def step_times(model, device, precision, rows, row_length, seconds=0.2):
    """Return the milliseconds of some forward and backward passes on made-up ids."""
    places = torch.arange(rows * row_length, device=device).view(rows, row_length)
    ids, documents = places % model.config.vocab_size, places // 64
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        with autocast(device, precision):
            value = loss(model, ids, ids, documents)
        value.backward()
        getattr(torch, device.type).synchronize()  # a GPU returns before it has computed
        times.append(round(1000 * (time.perf_counter() - began), 2))
    model.zero_grad(set_to_none=True)
    after_step(model, taken=False)
    return times[1:]  # the first only warms up


def choose_threads(model, rows, row_length, ranks=1):
    """Return (threads, {tried: ms}), for one of `ranks`: all cores, halved while that is faster."""
    # A small model does not feed many; where another program holds a core, all threads wait for it.
    # OMP_NUM_THREADS, where the reader set it, is the most; torchrun sets it to 1.
    allowed = ranks == 1 and os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, tried = int(allowed or max(1, cores // ranks)), {}
    while threads:
        torch.set_num_threads(threads)
        times = step_times(model, torch.device("cpu"), "fp32", rows, row_length)
        tried[threads] = sorted(times)[len(times) // 2]
        threads = threads // 2 if tried[threads] == min(tried.values()) else 0
    return min(tried, key=tried.get), tried


def choose_precision(model, device, rows, row_length):
    """Return (precision, {tried: ms}): half precision if it is at least WORTH times as fast."""
    # fp16, whose small range needs a loss scale, is tried only on GPUs that have no bf16.
    half = "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported(False) else "bf16"
    tried = dict.fromkeys((half, "fp32"), float("inf"))
    for name in [*tried] * 3:  # in turn, and the best of each: others use the machine
        with contextlib.suppress(TypeError):  # a device that knows no bf16
            tried[name] = min(tried[name], *step_times(model, device, name, rows, row_length))
        if tried[half] > 2 * tried["fp32"]:  # some processors only imitate it, and take seconds
            break
    return half if tried[half] * WORTH <= tried["fp32"] else "fp32", tried


def peak_memory(device):
    """Return the most bytes that the process (on CUDA: the allocator) has held, None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(ImportError):  # on Windows
        from resource import RUSAGE_SELF, getrusage  # which counts in kilobytes but on macOS
        return getrusage(RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
