"""One new position at a time, in half as many calls.

What the chapter spends: generation takes one position through the layers of training. In a small
model its products are tiny: what costs is each call of torch, a few microseconds whether it adds
two numbers or a thousand, and finding each module and weight in Python.

The ideas, each of which saves calls and none of which changes the mathematics:

* Weights are looked up once for a cache. RMSNorm's get the factor √C: x/√(|x|²/C + eps) · w is
  x/√(|x|² + C·eps) · √C·w, and the root is torch.hypot of |x| and √(C·eps).
* RoPE at one position is the same matrix for all heads and layers: one product rotates a vector.
  The matrices of some positions are made at once (the identity, rotated).
* A key and a value are written where the cache keeps them. A softmax over keys does not mind their
  order, so a rolling window is never put in order; and all that is kept may be seen, so no mask is
  needed but for the padding of shorter prompts.
* The H/K queries that share a key-value head stand before it as if they were positions.

The saving is printed by `python tests/bench/bench_model.py kernels`.
"""

import math
import typing

import torch
import torch.nn.functional as F

from nanoseek.fast.attention import additive
from nanoseek.fast.window import WindowMask
from nanoseek.model import rotary_table, rotate

ROPE_CHUNK = 64  # positions whose matrices are made at once, over all rows of different lengths


class Layer(typing.NamedTuple):
    """The weights of a DecoderLayer; those of its norms in fp32, times √C."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor


class OnePosition:
    """What stays the same from one new position of a cache to the next."""

    def __init__(self, model, cache):
        self.cache, self.config = cache, model.config
        C, device = model.config.hidden_size, cache.keys.device
        self.least = torch.full((1, 1), math.sqrt(C * model.config.rms_norm_eps), device=device)

        def scaled(norm):
            return norm.weight.float() * math.sqrt(C)
        self.last_norm = scaled(model.model.norm)
        self.layers = [Layer(
            *(getattr(layer.self_attn, f"{name}_proj").weight for name in ("q", "k", "v", "o")),
            *(getattr(layer.mlp, f"{name}_proj").weight for name in ("gate", "up", "down")),
            scaled(layer.input_layernorm), scaled(layer.post_attention_layernorm))
            for layer in model.model.layers]
        self.rotations, self.first = (), 0  # RoPE's matrices, and the position of the first

    def norm(self, x, weight):
        length = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.least)).mul_(weight).type_as(x)

    def rotation(self):
        """Return RoPE at the next position as a matrix (D, D), or (B, D, D) where rows differ."""
        starts, length = self.cache.starts, self.cache.length
        if not 0 <= length - self.first < len(self.rotations):
            count = ROPE_CHUNK if starts is None else max(1, ROPE_CHUNK // len(starts))
            at = torch.arange(length, length + count, device=self.least.device)
            if starts is not None:
                at = (at - starts[:, None]).clamp(min=0)  # (B, count)
            tables = [table.to(self.cache.keys.dtype) for table in rotary_table(self.config, at)]
            identity = torch.eye(self.config.head_size, dtype=tables[0].dtype, device=at.device)
            self.rotations, self.first = rotate(identity, *tables).unbind(-3), length
        return self.rotations[length - self.first]

    def mask(self):
        """Return a mask (B, 1, 1, S) that hides padding from rows of different lengths, or None."""
        cache, at = self.cache, self.cache.length
        if cache.starts is None:
            return None
        slots = torch.arange(min(at + 1, cache.size), device=cache.keys.device)
        positions = at - (at - slots) % cache.size  # the latest that stands in each slot
        return additive(positions >= cache.starts[:, None, None, None], cache.keys.dtype)

    def __call__(self, x):
        """Take the embedding x (B, C) of one more position through the layers and the last norm."""
        B, K, D = len(x), self.config.num_key_value_heads, self.config.head_size
        rotation, mask = self.rotation().expand(B, D, D), self.mask()
        slot, end = self.cache.length % self.cache.size, min(self.cache.length + 1, self.cache.size)
        for w, keys, values in zip(self.layers, self.cache.keys, self.cache.values):
            h = self.norm(x, w.attention_norm)
            keys[:, :, slot] = torch.bmm(F.linear(h, w.k).view(B, K, D), rotation)
            values[:, :, slot] = F.linear(h, w.v).view(B, K, D)
            q = torch.bmm(F.linear(h, w.q).view(B, -1, D), rotation).view(B, K, -1, D)
            y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], mask)
            x = x + F.linear(y.reshape(B, -1), w.o)
            h = self.norm(x, w.mlp_norm)
            x = x + F.linear(F.silu(F.linear(h, w.gate)) * F.linear(h, w.up), w.down)
        return self.norm(x, self.last_norm)


class FastTransformer(WindowMask):
    def hidden(self, ids, document_ids=None, cache=None):
        if cache is None or ids.shape[1] > 1:
            return super().hidden(ids, document_ids, cache)
        if not hasattr(cache, "one_position"):  # a cache serves one model
            cache.one_position = OnePosition(self, cache)
        with torch.no_grad():
            x = cache.one_position(self.embed(ids, cache)[:, 0])[:, None]
        cache.length += 1
        return x
