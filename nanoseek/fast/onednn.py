"""Exact fp32 matrix products by oneDNN, where torch's default library is slow.

What a run spends: torch hands the fp32 products of a CPU to MKL, Intel's library, which leaves the
widest vector instructions (AVX-512) of AMD's processors unused. oneDNN, also in torch, takes them.

The knob: torch asks oneDNN for fp32 products only if they may be less exact. So the setting
`mkldnn.matmul.fp32_precision = "bf16"`, which holds for the whole process, chooses oneDNN, and lets
it round the inputs to bf16. Processors with bf16 matrix units (AMX) do round then; the others
multiply exactly. Which it is here is tried: one product, beside its value in fp64.
The saving is printed by `python tests/bench/bench_model.py train`, which takes both libraries."""

import torch


def use_exact_onednn():
    """Let oneDNN make this process's fp32 products if it does so exactly; return whether."""
    if not torch.backends.mkldnn.is_available():
        return False
    knob = torch.backends.mkldnn.matmul
    before, knob.fp32_precision = knob.fp32_precision, "bf16"
    left, right = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    error = (left @ right - exact).norm() / exact.norm()
    if error > 1e-5:  # fp32 leaves about 1e-7, bf16 1e-3
        knob.fp32_precision = before
    return bool(error <= 1e-5)
