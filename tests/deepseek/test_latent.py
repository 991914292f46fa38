"""Latent attention: the absorbed form, the size of what is kept, what is refused."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from nanoseek.deepseek.latent import Latent, LatentAttention
from nanoseek.model import KVCache, ModelConfig


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 6),
       *[st.integers(1, 12)] * 3, st.integers(1, 4))
def test_the_absorbed_form_gives_the_same(batch, heads, new, kept, rank, nope, value, pairs):
    part = Latent(rank, None, nope, 2 * pairs, value)
    config = ModelConfig(hidden_size=8, num_attention_heads=heads, num_key_value_heads=1,
                         attention=part)
    layer = LatentAttention(config, part, 0).double()
    q, q_rope = torch.randn(2, batch, heads, new, 32, dtype=torch.float64)
    latent, k_rope = torch.randn(2, batch, 1, kept + new, 32, dtype=torch.float64)
    inputs = (q[..., :nope], q_rope[..., :2 * pairs], latent[..., :rank], k_rope[..., :2 * pairs])
    mask = torch.ones(new, kept + new, dtype=torch.bool).tril(kept)
    torch.testing.assert_close(layer.absorbed(*inputs, mask), layer.expanded(*inputs, mask))


def test_a_score_depends_on_the_distance_alone():
    """Rotating by position leaves what a row gives where all its positions are shifted."""
    part = Latent(6, 5, 4, 8, 3)
    config = ModelConfig(hidden_size=8, num_attention_heads=2, attention=part)
    torch.manual_seed(0)
    layer, x = LatentAttention(config, part, 0).double(), torch.randn(1, 9, 8, dtype=torch.float64)
    mask, results = torch.ones(9, 9, dtype=torch.bool).tril(), []
    for first in (0, 37):
        angles = (torch.arange(first, first + 9)[:, None, None]
                  * 100.0 ** -torch.arange(0, 1, 0.25, dtype=torch.float64))
        cos, sin = angles.cos(), angles.sin()
        rotary = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        results.append(layer(x, rotary, mask))
    torch.testing.assert_close(*results)


def test_the_cache_holds_what_the_paper_says():
    config = ModelConfig(num_hidden_layers=3, attention=Latent(24, None, 8, 6, 8))
    cache = KVCache(config, 2, 50)
    assert cache.keys.numel() + cache.values.numel() == 3 * 2 * 50 * (24 + 6)


@pytest.mark.parametrize("changes, message", [
    ({"kv_lora_rank": 0}, "kv_lora_rank is 0"), ({"q_lora_rank": 0}, "q_lora_rank is 0"),
    ({"v_head_dim": 2.5}, "v_head_dim is 2.5"), ({"qk_rope_head_dim": 5}, "is odd"),
    ({"qk_nope_head_dim": True}, "qk_nope_head_dim is True")])
def test_shapes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Latent(**changes)


def test_a_window_is_refused():
    with pytest.raises(ValueError, match="sliding_window"):
        Latent().build(ModelConfig(sliding_window=8), 0)
