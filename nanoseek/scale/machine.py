"""What a run computes on: its device, by measurement its threads and precision, compiled or not.

    device = pick_device("auto")                        # cuda, mps or cpu
    threads, why = choose_threads(model, rows=8, row_length=256)
    precision, why = choose_precision(model, device, rows=8, row_length=256)

What is fastest differs from machine to machine: bf16 doubles the speed of one processor and halves
that of another, and two threads beside a busy neighbour can be slower than one. So both are tried
on the model itself, which takes a second or about a dozen steps; the winner is stored with the run,
since another number of threads adds up in another order and gives other last bits.
"""

import contextlib
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
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    if (name == "cuda" and torch.cuda.device_count() <= local_rank) or \
            (name == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"this machine has no {name} device{f' {local_rank}' * bool(local_rank)}: "
                         "leave out --device, or start fewer processes")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def autocast(device, precision):
    """Return the context in which a model computes in fp32, bf16 or fp16; its weights stay fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALVES[precision])


def compiled_loss(**settings):
    """Return `loss` as torch.compile fuses it, anew for each shape of a batch, a minute or less each.

    settings: torch.compile's own. Raises ValueError, when called, where the compiler fails.
    """
    # Not above: what this imports takes a second, which the other runs need not wait.
    torch.compiler.assume_constant_result(rotary_frequencies)  # else powers for each number turned
    torch._dynamo.config.recompile_limit = 1000  # beyond it, the last rows of a ramp would be slow
    fused = torch.compile(loss, dynamic=False, **settings)

    def compute(*arguments):
        try:
            return fused(*arguments)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            raise ValueError(f"torch.compile failed ({str(error).strip().splitlines()[0]}): it needs "
                             "a C++ compiler, on a GPU Triton too; or leave out --compile") from None
    return compute


def step_times(model, device, precision, rows, row_length, seconds=0.2):
    """Return the seconds of some forward and backward passes on random ids; no weight moves."""
    ids = torch.randint(model.config.vocab_size, (rows, row_length), device=device,
                        generator=torch.Generator(device).manual_seed(0))
    documents = (torch.arange(row_length, device=device) // 64).expand(rows, row_length)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:  # the first only warms up
        began = time.perf_counter()
        with autocast(device, precision):
            value = loss(model, ids, ids, documents)
        value.backward()
        getattr(torch, device.type).synchronize()  # a GPU returns before it has computed
        times.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return times[1:]


def cores():
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_threads(model, rows, row_length, ranks=1):
    """Return (threads, why) for this process, one of `ranks`; leave torch set to that number.

    Begins with all cores and halves them while that makes a step faster: a small model does not
    feed many cores, and a thread that waits for a core which another program holds keeps all
    others waiting. OMP_NUM_THREADS, where the reader set it, is taken (torchrun sets it to 1).
    """
    if ranks == 1 and os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), "OMP_NUM_THREADS"
    threads, tried = cores() // ranks, {}
    while threads > 1 or threads and tried:  # one core leaves nothing to choose
        torch.set_num_threads(threads)
        tried[threads] = statistics.median(
            step_times(model, torch.device("cpu"), "fp32", rows, row_length))
        if tried[threads] > min(tried.values()):
            break
        threads //= 2
    best = min(tried, key=tried.get, default=1)
    torch.set_num_threads(best)
    return best, ", ".join(f"{n}: {1000 * t:.0f} ms" for n, t in tried.items()) or "one core"


def choose_precision(model, device, rows, row_length):
    """Return (precision, why): fp32, or the half precision that is at least WORTH times as fast.

    fp16, whose small range needs a loss scale, is tried only on GPUs that have no bf16.
    """
    half = "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported(False) else "bf16"
    tried = {}
    for precision in ("fp32", half) * 3:  # in turn, and the best of each: others use the machine
        with contextlib.suppress(torch.OutOfMemoryError):
            best = min(step_times(model, device, precision, rows, row_length))
            tried[precision] = min(best, tried.get(precision, best))
    if not tried:
        raise ValueError("a micro-batch does not fit this device's memory: raise --accumulation")
    plain = tried.get("fp32", float("inf"))
    best = half if tried.get(half, float("inf")) * WORTH <= plain else "fp32"
    return best, ", ".join(f"{name}: {1000 * t:.0f} ms" for name, t in tried.items())


def random_states():
    """Return the states of torch's random generators, fit for JSON."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: bytes(state.tolist()).hex() for name, state in states.items()}


def set_random_states(states):
    """Put back what random_states returned, as far as this machine has the devices."""
    decoded = {name: torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
               for name, text in states.items()}
    torch.set_rng_state(decoded["cpu"])
    if "cuda" in decoded and torch.cuda.is_available():
        torch.cuda.set_rng_state(decoded["cuda"])


def peak_memory(device):
    """Return the most bytes that the process (on CUDA: the allocator) has held, or None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS
