"""One new position at a time, in half as many calls.

What the chapter spends: generation takes one position through the layers that train. In a small
model the arithmetic is next to nothing, but calls cost, and look-ups of weights. To save calls:

* Weights are looked up once for a cache. RMSNorm's take the factor √C, since x/√(|x|²/C + eps) · w
  is x/√(|x|² + C·eps) · √C·w; torch.hypot makes the root of |x| and √(C·eps).
* RoPE at one position is the same matrix for all heads and layers: one product rotates a vector.
  The matrices of some positions are made at once, by rotating the identity.
* Keys and values are read where the cache keeps them. Softmax does not mind the order of keys, so a
  rolling window is never put in order; all that is kept may be seen, but for padding.
* The H/K queries that share a key-value head stand before it as if they were positions.

The saving is printed by `python tests/bench/bench_model.py kernels`."""

import collections
import math

import torch
import torch.nn.functional as F

from nanoseek.fast.attention import additive
from nanoseek.fast.window import FastMask
from nanoseek.model import rotary_table, rotate

ROPE_CHUNK = 64  # positions whose matrices are made at once, over all rows of different lengths
# The weights of a DecoderLayer, as it defines them; those of its norms in fp32, times √C.
Layer = collections.namedtuple("Layer", "q k v o gate up down attention_norm mlp_norm")


class OnePosition:
    """What stays the same from one new position of a cache to the next."""
    def __init__(self, model, starts):
        self.config, device = model.config, model.lm_head.weight.device
        C, eps, L = self.config.hidden_size, self.config.rms_norm_eps, self.config.num_hidden_layers
        self.least, root = torch.full((1, 1), math.sqrt(C * eps), device=device), math.sqrt(C)
        self.last_norm = model.model.norm.weight.float() * root
        self.layers = [Layer(*matrices, first.float() * root, second.float() * root) for
                       *matrices, first, second in (x.parameters() for x in model.model.layers[:L])]
        self.starts = torch.zeros(1, device=device) if starts is None else starts
        self.rotations, self.first = (), 0  # RoPE's matrices, and the position of the first

    def norm(self, x, weight):
        length = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.least)).mul_(weight).type_as(x)

    def rotation(self, position, dtype):
        """Return RoPE at a position as a matrix for all rows (1, D, D), or for each (B, D, D)."""
        if not 0 <= position - self.first < len(self.rotations):
            more = torch.arange(max(1, ROPE_CHUNK // len(self.starts)), device=self.least.device)
            at = (position - self.starts[:, None] + more).clamp(min=0)  # (1 or B, chunk)
            cos, sin = (table.to(dtype) for table in rotary_table(self.config, at))
            identity = torch.eye(self.config.head_size, dtype=dtype, device=at.device)
            self.rotations, self.first = rotate(identity, cos, sin).unbind(1), position
        return self.rotations[position - self.first]

    def __call__(self, x, cache):
        """Take the embedding x (B, C) of one more position through the layers and the last norm."""
        B, K, D = len(x), self.config.num_key_value_heads, self.config.head_size
        rotation, mask = self.rotation(cache.length, cache.keys.dtype).expand(B, D, D), None
        if cache.starts is not None:  # the padding before shorter rows is hidden: (B, 1, 1, S)
            slots = torch.arange(min(cache.length + 1, cache.size), device=x.device)
            positions = cache.length - (cache.length - slots) % cache.size  # the latest of each
            mask = additive(positions >= cache.starts[:, None, None, None], cache.keys.dtype)
        # Of all layers at once: two of (layers, B, K, S, D), and of (layers, B, K, D) to be filled.
        seen = [kept[:, :, :, :cache.length + 1] for kept in cache.kept]  # of a full window, all
        own = [kept[:, :, :, cache.length % cache.size] for kept in cache.kept]
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


class FastTransformer(FastMask):
    def hidden(self, ids, document_ids=None, cache=None):
        if cache is None or ids.shape[1] > 1 or self.config.attention or self.config.feed_forward:
            return super().hidden(ids, document_ids, cache)
        if not hasattr(cache, "one_position"):  # a cache serves one model
            cache.one_position = OnePosition(self, cache.starts)
        with torch.no_grad():
            x = cache.one_position(self.embed(ids, cache)[:, 0], cache)[:, None]
        cache.length += 1
        return x
