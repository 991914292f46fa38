"""fast/window.py: the chapter's mask over all keys, computed by blocks, for linear cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nanoseek import model as chapter
from nanoseek.fast import speed_up, window
from test_model import build, random_ids, saved_bytes, shapes


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Make blocks small, so that short texts have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "WINDOW_BLOCK", 4)
        yield


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), kv=st.integers(1, 2), group=st.integers(1, 2),
       length=st.integers(2, 60), reach=st.integers(1, 59), documents=st.booleans(),
       seed=st.integers(0, 99))
def test_attention_by_blocks_equals_attention_under_a_mask(batch, kv, group, length, reach,
                                                           documents, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, length, 4, generator=generator).double().requires_grad_()
               for heads in (kv * group, kv, kv))
    ids = torch.arange(length).div(7, rounding_mode="floor").expand(batch, length)
    ids = ids if documents else torch.zeros_like(ids)
    at = torch.arange(length)
    seen = (at <= at[:, None]) & (at[:, None] - at < reach) & (ids[:, None, :, None]
                                                               == ids[:, None, None, :])
    upstream = torch.randn(q.shape, generator=generator).double()
    blocks = window.block_mask(reach, ids, torch.float64)
    results = [window.WindowAttention.attend(window.WindowAttention(chapter.ModelConfig(), 0),
                                             q, k, v, blocks),
               chapter.Attention.attend(None, q, k, v, seen)]
    for found, expected in zip(*((y, *torch.autograd.grad(y, (q, k, v), upstream))
                                 for y in results)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), length=st.integers(1, 40), documents=st.booleans())
def test_a_model_with_a_window_equals_the_chapters(shape, length, documents):
    model = build(chapter, **{**shape, "sliding_window": shape["sliding_window"] or 6})
    ids, document_ids = random_ids(model.config, 2, length), None
    if documents:
        document_ids = torch.arange(length).div(7, rounding_mode="floor").expand(2, length)
    expected = model(ids, document_ids)
    gradients = torch.autograd.grad(expected.square().mean(), model.parameters())
    found = speed_up(model)(ids, document_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(torch.autograd.grad(found.square().mean(), model.parameters()),
                          gradients):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_sliding_window_computes_and_keeps_what_is_linear_in_the_length():
    """Twice the length, twice the products and the bytes: counted, not timed."""
    counts, saved = [], []
    for length in (64, 128, 256):
        model = speed_up(build(chapter, max_position_embeddings=256, sliding_window=16)).train()
        ids = random_ids(model.config, 1, length)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
                FlopCounterMode(display=False) as counter:
            model(ids)
        counts.append(counter.get_total_flops())
        saved.append(saved_bytes(model, ids))
    assert 1.9 < counts[1] / counts[0] < 2.1 and 1.9 < counts[2] / counts[1] < 2.1
    assert saved[2] / saved[1] < 2.1
