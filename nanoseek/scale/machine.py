"""What a run computes on: its device, and by measurement its threads and its precision.

    device = pick_device("auto")                        # cuda, mps or cpu
    threads, why = choose_threads(model, rows=8, row_length=256)
    precision, why = choose_precision(model, device, rows=8, row_length=256)

What is fastest differs: bf16 doubles the speed of one processor and halves that of another, and two
threads beside a busy neighbour can be slower than one. So both are tried on the model itself. The
winner is stored with the run: other threads add up in another order and give other last bits.
"""

import contextlib
import math
import os
import statistics
import sys
import time

import torch

from nanoseek.model import loss, rotary_frequencies

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *HALVES)
WORTH = 1.1  # how many times as fast half precision must be to be worth its lost digits


def pick_device(name, local_rank=0):
    """Return the torch device of a setting; raises ValueError for one that is not here."""
    here = {"cuda": torch.cuda.device_count(), "mps": torch.mps.device_count(), "cpu": 1}
    if name == "auto":
        name = next(kind for kind in here if here[kind])
    if name not in here:
        raise ValueError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    number = local_rank if name == "cuda" else 0
    if number >= here[name]:
        raise ValueError(f"this machine has no {name} device{f' {number}' * bool(number)}: "
                         "leave out --device, or start fewer processes")
    return torch.device(name, number) if name == "cuda" else torch.device(name)


def autocast(device, precision):
    """Return the context in which a model computes in fp32, bf16 or fp16; its weights stay fp32."""
    return torch.autocast(device.type, HALVES.get(precision), enabled=precision != "fp32")


def compiled_loss(**settings):
    """Return `loss` as torch.compile fuses it, anew for each shape of a batch (up to a minute)."""
    torch.compiler.assume_constant_result(rotary_frequencies)  # else powers at every position
    torch._dynamo.config.recompile_limit = 1000  # beyond it, the last rows of a ramp would be slow
    return torch.compile(loss, dynamic=False, **settings)


def step_times(model, device, precision, rows, row_length, seconds=0.2):
    """Return the seconds of some forward and backward passes on random ids; no weight moves."""
    ids = torch.randint(model.config.vocab_size, (rows, row_length), device=device,
                        generator=torch.Generator(device).manual_seed(0))
    documents = (torch.arange(row_length, device=device) // 64).expand(rows, row_length)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        with autocast(device, precision):
            value = loss(model, ids, ids, documents)
        value.backward()
        getattr(torch, device.type).synchronize()  # a GPU returns before it has computed
        times.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return times[1:]  # the first only warms up


def cores():
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_threads(model, rows, row_length, ranks=1):
    """Return (threads, why) for this process, one of `ranks`; leave torch set to that number.

    Begins with all cores and halves them while that makes a step faster: a small model does not
    feed many, and where another program holds a core, all threads wait for the one that is to have
    it. OMP_NUM_THREADS, where the reader set it, is taken (torchrun sets it to 1).
    """
    if ranks == 1 and os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), "OMP_NUM_THREADS"
    threads, tried = max(1, cores() // ranks), {}
    while threads:
        torch.set_num_threads(threads)
        times = step_times(model, torch.device("cpu"), "fp32", rows, row_length)
        tried[threads] = statistics.median(times)
        threads = threads // 2 if tried[threads] == min(tried.values()) else 0
    best = min(tried, key=tried.get)
    torch.set_num_threads(best)
    return best, in_words(tried)


def choose_precision(model, device, rows, row_length):
    """Return (precision, why): fp32, or the half precision that is at least WORTH times as fast."""
    # fp16, whose small range needs a loss scale, is tried only on GPUs that have no bf16.
    half = "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported(False) else "bf16"
    tried = {}
    for precision in ("fp32", half) * 3:  # in turn, and the best of each: others use the machine
        with contextlib.suppress(torch.OutOfMemoryError):
            best = min(step_times(model, device, precision, rows, row_length))
            tried[precision] = min(best, tried.get(precision, best))
    if not tried:
        raise ValueError("a micro-batch does not fit this device's memory: raise --accumulation")
    faster = tried.get(half, math.inf) * WORTH <= tried.get("fp32", math.inf)
    return half if faster else "fp32", in_words(tried)


def in_words(tried):
    return ", ".join(f"{what}: {1000 * seconds:.0f} ms" for what, seconds in tried.items())


def peak_memory(device):
    """Return the most bytes that the process (on CUDA: the allocator) has held, None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(ImportError):  # on Windows
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS
