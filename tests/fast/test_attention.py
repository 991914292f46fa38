"""fast/attention.py: torch's scaled_dot_product_attention, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek.fast import attention


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), kv=st.integers(1, 3), group=st.integers(1, 3),
       queries=st.integers(2, 40), more=st.integers(0, 40), size=st.sampled_from([1, 4, 6]),
       kind=st.sampled_from(["causal", "shared", "by row"]), chunk=st.sampled_from([1, 500, 9999]),
       seed=st.integers(0, 99))
def test_attention_of_short_rows_equals_torchs(batch, kv, group, queries, more, size, kind, chunk,
                                               seed):
    """In values and gradients, whatever the mask hides and however few queries a block holds."""
    generator = torch.Generator().manual_seed(seed)
    keys = queries if kind == "causal" else queries + more
    q = torch.randn(batch, queries, kv * group, size, generator=generator).double().transpose(1, 2)
    k, v = torch.randn(2, batch, keys, kv, size, generator=generator).double().transpose(2, 3)
    seen = torch.rand(batch if kind == "by row" else 1, 1, queries, keys,
                      generator=generator) < 0.5
    seen = seen.tril(keys - queries)
    seen[..., 0] = True  # each query sees something
    mask = None if kind == "causal" else attention.additive(seen, torch.float64)
    mask = mask[0, 0] if kind == "shared" else mask
    upstream = torch.randn(batch, kv * group, queries, size, generator=generator).double()
    ours, torchs = [[x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES_CHUNK", chunk)
        y = attention.ShortAttention.apply(*ours, mask)
        found = y, *torch.autograd.grad(y, ours, upstream)
    y = F.scaled_dot_product_attention(*torchs, mask, is_causal=mask is None, enable_gqa=True)
    for one, other in zip(found, (y, *torch.autograd.grad(y, torchs, upstream))):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_its_gradient_is_the_derivative():
    q, k, v = (torch.randn(2, heads, 5, 4, dtype=torch.float64, requires_grad=True)
               for heads in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda *x: attention.ShortAttention.apply(*x, None), (q, k, v))


@pytest.mark.parametrize("dtype, queries, keys, own", [
    (torch.bfloat16, 9, 9, True), (torch.bfloat16, 9, attention.SHORT, True),
    (torch.bfloat16, 9, attention.SHORT + 1, False), (torch.bfloat16, 1, 9, False),
    (torch.float16, 9, 9, False)])
def test_long_rows_and_single_queries_are_left_to_torch(monkeypatch, dtype, queries, keys, own):
    called, real = [], attention.ShortAttention

    class Spy(real):
        @staticmethod
        def forward(ctx, *inputs):
            called.append(True)
            return real.forward(ctx, *inputs)
    q, k, v = (torch.randn(1, 2, n, 4).to(dtype) for n in (queries, keys, keys))
    mask = attention.additive(torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries),
                              dtype)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    monkeypatch.setattr(attention, "ShortAttention", Spy)
    monkeypatch.setattr(attention, "WIDE_VECTORS", True)
    found = attention.FastAttention.attend(None, q, k, v, mask)
    assert bool(called) == own
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
