"""Measure training on a CUDA GPU at the 124M shape: first whether it is right, then how fast.

    python tests/bench/bench_gpu.py check     # against the CPU, with products in float64
    python tests/bench/bench_gpu.py train     # each kind of checkpointing, as written and compiled
    python tests/bench/bench_gpu.py window    # sliding window, 1k to 16k tokens

A step is forward and backward, without the optimizer, in bf16 autocast over fp32 weights, on random
ids. The models have the parts of fast/, of which those for the CPU step aside. Times are medians;
MFU is the share of what a large bf16 product reaches in the same run.
"""

import dataclasses
import pathlib
import statistics
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.cost import flops_per_token, measure_ceiling, memory
from nanoseek.fast import speed_up
from nanoseek.generate import generate_many
from nanoseek.model import CHECKPOINTING, PRESETS, ModelConfig, Transformer, loss
from nanoseek.scale.machine import autocast, compiled_loss

CUDA = torch.device("cuda")
ROWS, LENGTH, STEPS = 32, 1024, 15
LIMITS = {"fp32": 1e-5, "bf16": 1e-2}  # of the relative error of logits and loss
OF_GRADIENTS = 3  # times as much: a gradient goes through twice as many products
SMALL = ModelConfig(vocab_size=1000, hidden_size=192, intermediate_size=512, num_hidden_layers=3,
                    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
                    initializer_range=0.03)
CASES = {"GQA": {}, "MHA, tied no": {"num_key_value_heads": 6, "tie_word_embeddings": False},
         "MQA, head_dim 64": {"num_key_value_heads": 1, "head_dim": 64},
         "window of 100": {"sliding_window": 100}}


def relative(found, expected):
    """Return |found - expected| / |expected| of tensors, or of lists of them as one vector."""
    found, expected = (torch.cat([t.detach().double().cpu().flatten() for t in tensors])
                       for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def logits_and_gradients(model, ids, documents, precision, compute=loss):
    """Return [logits], [loss], [gradients of all weights]."""
    model.zero_grad(set_to_none=True)
    with torch.no_grad(), autocast(ids.device, precision):
        logits = model(ids[:, :-1], documents)
    # Apart: autocast keeps weights that it has cast, and what is computed again would miss them.
    with autocast(ids.device, precision):
        value = compute(model, ids[:, :-1], ids[:, 1:], documents)
    value.backward()
    return [logits], [value], [p.grad for p in model.parameters()]


def check():
    """Raise AssertionError unless the GPU computes what the CPU does with products in float64."""
    seed = torch.seed()  # fresh inputs each time
    random = torch.Generator().manual_seed(seed)
    print(f"seed {seed}")
    print(f"{'relative error of':<34}{'logits':>9}{'loss':>9}{'gradients':>11}")
    for name, changes in CASES.items():
        config = dataclasses.replace(SMALL, **changes)
        ids = torch.randint(config.vocab_size, (3, 301), generator=random)
        packed = torch.arange(300).expand(3, -1) // 130
        model = Transformer(config).train()
        there = speed_up(Transformer(config)).to(CUDA).train()
        there.load_state_dict(model.state_dict())
        for documents in (None, packed):
            expected = logits_and_gradients(model.double(), ids, documents, "fp32")
            on_gpu = ids.to(CUDA), None if documents is None else documents.to(CUDA)
            ways = [("fp32", "none", loss), ("bf16", "none", loss)]
            if name == "GQA":
                ways += [(precision, mode, compute) for precision in LIMITS for mode, compute in (
                    ("selective", loss), ("full", loss), ("none", compiled_loss(fullgraph=True)))]
            for precision, mode, compute in ways:
                there.activation_checkpointing = mode
                found = logits_and_gradients(there, *on_gpu, precision, compute)
                errors = list(map(relative, found, expected))
                words = [name, precision, "packed" * (documents is not None),
                         mode * (mode != "none"), "compiled" * (compute is not loss)]
                print(f"{', '.join(filter(None, words)):<34}{errors[0]:>9.0e}{errors[1]:>9.0e}"
                      f"{errors[2]:>11.0e}", flush=True)
                limit = LIMITS[precision]
                assert max(errors[:2]) <= limit and errors[2] <= OF_GRADIENTS * limit, \
                    f"{words} is off by {errors}"
        same_with_a_cache(there.eval())
    print("greedy generation with the cache, of one prompt and of three at once: as whole passes say")


def same_with_a_cache(model, count=40):
    prompts = [torch.randint(model.config.vocab_size, (n,)).tolist() for n in (5, 90, 31)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=CUDA)
        with torch.no_grad():
            for _ in range(count):
                ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
        expected.append(ids[0, len(prompt):].tolist())
    alone = [generate_many(model, [prompt], count, temperature=0)[0] for prompt in prompts]
    assert alone == expected, "generation with the cache differs"
    together = generate_many(model, prompts, count, temperature=0)
    assert together == expected, "generation from several prompts at once differs"


def milliseconds(run, steps=STEPS):
    """Return the median milliseconds of run() on the GPU's own clock; three calls warm up."""
    times = []
    for _ in range(steps + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def measured(run):
    """Return (milliseconds, most bytes allocated) of run()."""
    found = milliseconds(run)
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return found, torch.cuda.max_memory_allocated()


def stepper(model, ids, documents, compute):
    def run():
        with autocast(CUDA, "bf16"):
            value = compute(model, ids[:, :-1], ids[:, 1:], documents)
        value.backward()
        model.zero_grad(set_to_none=True)
    return run


def train():
    config = PRESETS["gpt2-124m"]
    model = speed_up(Transformer(config)).to(CUDA).train()
    ids = torch.randint(config.vocab_size, (ROWS, LENGTH + 1), device=CUDA)
    documents = torch.arange(LENGTH, device=CUDA).expand(ROWS, -1) // 400
    flops = flops_per_token(config, LENGTH)["total"] * ROWS * LENGTH
    ceiling = measure_ceiling(device="cuda")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {ROWS} rows of {LENGTH} "
          f"tokens; a large bf16 product reaches {ceiling / 1e12:.0f} TFLOP/s")
    print(f"{'':<10}{'checkpointing':<15}{'documents':<11}{'ms':>8}{'tokens/s':>11}{'MFU':>6}"
          f"{'peak GB':>9}{'cost.py says':>14}")
    for compiled in (False, True):
        for mode, packed in (*((mode, None) for mode in CHECKPOINTING), ("none", documents)):
            model.activation_checkpointing = mode
            torch.compiler.reset()
            compute = compiled_loss(fullgraph=True) if compiled else loss
            spent, peak = measured(stepper(model, ids, packed, compute))
            says = memory(config, ROWS, LENGTH, mode, "bf16", document_mask=packed is not None)
            says = says["total"] - says["optimizer"]
            print(f"{'compiled' * compiled:<10}{mode:<15}"
                  f"{'together' if packed is None else 'apart':<11}{spent:>8.1f}"
                  f"{ROWS * LENGTH / spent * 1e3:>11,.0f}{flops / spent * 1e3 / ceiling:>6.0%}"
                  f"{peak / 1e9:>9.1f}{says / 1e9:>14.1f}", flush=True)
    print(f"the large product again: {measure_ceiling(device='cuda') / 1e12:.0f} TFLOP/s")


def window(lengths=(1024, 2048, 4096, 8192, 16384), size=512):
    print(f"{'tokens':>7}{'full ms':>9}{f'window {size} ms':>15}{'full MB':>9}{'window MB':>11}")
    for length in lengths:
        found = []
        for choice in (None, size):
            config = dataclasses.replace(PRESETS["gpt2-124m"], num_hidden_layers=4, vocab_size=4096,
                                         max_position_embeddings=length, sliding_window=choice)
            model = speed_up(Transformer(config)).to(CUDA).train()
            ids = torch.randint(config.vocab_size, (1, length + 1), device=CUDA)
            held = torch.cuda.memory_allocated()
            spent, peak = measured(stepper(model, ids, None, loss))
            found.append((spent, (peak - held) / 1e6))
        (full, full_mb), (ours, ours_mb) = found
        print(f"{length:>7}{full:>9.1f}{ours:>15.1f}{full_mb:>9.0f}{ours_mb:>11.0f}", flush=True)


PARTS = {"check": check, "train": train, "window": window}


def main():
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    unknown = [name for name in sys.argv[1:] if name not in PARTS]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}: choose {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing to measure")
        return
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for name in sys.argv[1:] or PARTS:
        print(f"\n-- {name}", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main()
