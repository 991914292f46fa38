"""One new position at a time, in half as many calls.

What the chapter spends: generation takes one position through the layers that train. In a small
model its arithmetic is next to nothing; each call costs, and each look-up of a module or weight.

The ideas save calls and leave the mathematics as it is:

* Weights are looked up once for a cache. RMSNorm's take the factor √C, since x/√(|x|²/C + eps) · w
  is x/√(|x|² + C·eps) · √C·w; torch.hypot makes the root of |x| and √(C·eps).
* RoPE at one position is the same matrix for all heads and layers: one product rotates a vector.
  The matrices of some positions are made at once, by rotating the identity.
* Keys and values are read where the cache keeps them. Softmax does not mind the order of keys, so a
  rolling window is never put in order; all that is kept may be seen, but for padding.
* The H/K queries that share a key-value head stand before it as if they were positions.

The saving is printed by `python tests/bench/bench_model.py kernels`.
"""

import collections
import math

import torch
import torch.nn.functional as F

from nanoseek.fast.attention import additive
from nanoseek.fast.window import FastMask
from nanoseek.model import rotary_table, rotate

ROPE_CHUNK = 64  # positions whose matrices are made at once, over all rows of different lengths
# The weights of a DecoderLayer; those of its norms in fp32, times √C.
Layer = collections.namedtuple("Layer", "q k v o gate up down attention_norm mlp_norm")


class OnePosition:
    """What stays the same from one new position of a cache to the next."""

    def __init__(self, model):
        self.config = config = model.config
        root = math.sqrt(config.hidden_size)
        least = math.sqrt(config.hidden_size * config.rms_norm_eps)
        self.least = torch.full((1, 1), least, device=model.lm_head.weight.device)
        self.last_norm, self.layers = model.model.norm.weight.float() * root, []
        for layer in model.model.layers:
            heads, mlp = layer.self_attn, layer.mlp
            linears = (heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj,
                       mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            norms = layer.input_layernorm, layer.post_attention_layernorm
            self.layers.append(Layer(*(linear.weight for linear in linears),
                                     *(norm.weight.float() * root for norm in norms)))
        self.rotations, self.first = (), 0  # RoPE's matrices, and the position of the first

    def norm(self, x, weight):
        length = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.least)).mul_(weight).type_as(x)

    def rotation(self, cache):
        """Return RoPE at the next position as a matrix (D, D), or (B, D, D) where rows differ."""
        starts, length = cache.starts, cache.length
        if not 0 <= length - self.first < len(self.rotations):
            count = ROPE_CHUNK if starts is None else max(1, ROPE_CHUNK // len(starts))
            at = torch.arange(length, length + count, device=self.least.device)
            if starts is not None:
                at = (at - starts[:, None]).clamp(min=0)  # (B, count)
            tables = [table.to(cache.keys.dtype) for table in rotary_table(self.config, at)]
            identity = torch.eye(self.config.head_size, dtype=tables[0].dtype, device=at.device)
            self.rotations, self.first = rotate(identity, *tables).unbind(-3), length
        return self.rotations[length - self.first]

    def __call__(self, x, cache):
        """Take the embedding x (B, C) of one more position through the layers and the last norm."""
        B, K, D = len(x), self.config.num_key_value_heads, self.config.head_size
        rotation, mask = self.rotation(cache).expand(B, D, D), padding_mask(cache)
        # Of all layers at once: (2, layers, B, K, S, D), and (2, layers, B, K, D) to be filled.
        seen = cache.kept[:, :, :, :, :cache.length + 1]  # in a full window this is all of it
        own = cache.kept[:, :, :, :, cache.length % cache.size]
        for w, keys, values, key, value in zip(self.layers, *seen, *own):
            h = self.norm(x, w.attention_norm)
            key.copy_(torch.bmm(F.linear(h, w.k).view(B, K, D), rotation))
            value.copy_(F.linear(h, w.v).view(B, K, D))
            q = torch.bmm(F.linear(h, w.q).view(B, -1, D), rotation).view(B, K, -1, D)
            y = F.scaled_dot_product_attention(q, keys, values, mask)  # (B, K, H/K, D)
            x = x + F.linear(y.reshape(B, -1), w.o)
            h = self.norm(x, w.mlp_norm)
            x = x + F.linear(F.silu(F.linear(h, w.gate)) * F.linear(h, w.up), w.down)
        return self.norm(x, self.last_norm)


def padding_mask(cache):
    """Return a mask (B, 1, 1, S) that hides the padding before rows of other lengths, or None."""
    if cache.starts is None:
        return None
    slots = torch.arange(min(cache.length + 1, cache.size), device=cache.keys.device)
    positions = cache.length - (cache.length - slots) % cache.size  # the latest of each slot
    return additive(positions >= cache.starts[:, None, None, None], cache.keys.dtype)


class FastTransformer(FastMask):
    def hidden(self, ids, document_ids=None, cache=None):
        if cache is None or ids.shape[1] > 1:
            return super().hidden(ids, document_ids, cache)
        if not hasattr(cache, "one_position"):  # a cache serves one model
            cache.one_position = OnePosition(self)
        with torch.no_grad():
            x = cache.one_position(self.embed(ids, cache)[:, 0], cache)[:, None]
        cache.length += 1
        return x
