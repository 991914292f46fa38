"""fast/onednn.py: the setting is taken back where it would round."""

import torch

from nanoseek.fast import onednn
from test_model import relative_difference


def test_onednn_is_used_only_where_it_is_exact(monkeypatch):
    knob = torch.backends.mkldnn.matmul
    before = knob.fp32_precision
    try:
        used = onednn.use_exact_onednn()
        left, right = torch.rand(2, 300, 300, generator=torch.Generator().manual_seed(1))
        exact = left.double() @ right.double()
        assert relative_difference((left @ right).double(), exact) < 1e-5
        assert (knob.fp32_precision == "bf16") == used
        # A chip that rounds: its products are not taken.
        knob.fp32_precision = before
        product = torch.Tensor.__matmul__

        def rounding(one, other):
            return product(one, other) if one.dtype == torch.float64 else \
                product(one.bfloat16(), other.bfloat16()).float()
        monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
        assert not onednn.use_exact_onednn() and knob.fp32_precision == before
    finally:
        knob.fp32_precision = before
