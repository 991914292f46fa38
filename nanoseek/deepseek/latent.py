"""Multi-head latent attention (MLA): the cache keeps one short vector of a token for all heads.

    part = Latent(kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
    model = Transformer(ModelConfig(attention=part))

What the chapter spends: each token leaves K keys and K values of D numbers in the cache. Grouped
heads have fewer of them, and lose some quality. The idea (DeepSeek-V2, arXiv 2405.04434, §2.1):
keep the heads, but compute all their keys and values from one short vector c, the *latent*:

    c = W_DKV·h                 compressed: kv_lora_rank numbers, which is all that the cache needs
    [k; v] of each head = W_UK·c, W_UV·c               expanded: qk_nope_head_dim and v_head_dim
    q of each head = W_UQ·(W_DQ·h)                     queries go through a latent of their own, too

RoPE rotates a key by its position, and a rotation between W_UK and c would have to be undone. So
positions get numbers of their own (*decoupled RoPE*, §2.1.3): each query has qk_rope_head_dim more,
rotated, and so has one key that all heads share. A score is q·k of both parts together.

To expand all keys again for each new token would be dear. But (q·W_UK·c) is (W_UKᵀ·q)·c: when W_UK
is taken to the query and W_UV to the output, attention works on the latents themselves, as if one
key-value head served all queries. This *absorbed* form gives the same and decodes faster.

Shapes: B batch, T query positions, S key positions, C hidden_size, H heads, R kv_lora_rank, N, P
and V the numbers of a head: qk_nope_head_dim, qk_rope_head_dim and v_head_dim.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from nanoseek.model import Part, RMSNorm, rotate

EPS = 1e-6  # of the latents' norms, whatever that of the others, as in DeepSeek's code


@dataclasses.dataclass(frozen=True)
class Latent(Part):
    """The shape of latent attention, in Hugging Face's names. ValueError when numbers do not fit.

    The cache holds kv_lora_rank + qk_rope_head_dim numbers a token and layer.
    """
    kv_lora_rank: int = 64
    q_lora_rank: int | None = None  # None: queries are made from h at once
    qk_nope_head_dim: int = 32  # without position
    qk_rope_head_dim: int = 16  # rotated
    v_head_dim: int = 32
    rope_interleave: bool = True  # pairs are neighbours in the weights, as DeepSeek stores them

    def __post_init__(self):
        for name, value in vars(self).items():
            if name != "rope_interleave" and not (
                    value is None and name == "q_lora_rank"
                    or isinstance(value, int) and not isinstance(value, bool) and value > 0):
                raise ValueError(f"{name} is {value!r}: it must be a whole number above 0")
        if type(self.rope_interleave) is not bool:
            raise ValueError(f"rope_interleave is {self.rope_interleave!r}: it is true or false")
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd: RoPE rotates pairs")

    def build(self, config, layer):
        if config.sliding_window:
            raise ValueError("latent attention has no sliding_window: leave one of them out")
        return self.module()(config, self, layer)

    def module(self):
        return LatentAttention

    def cached(self, config):
        """Return what a layer keeps of a token: heads, and the widths of the latent and the key."""
        return 1, self.kv_lora_rank, self.qk_rope_head_dim

    def widths(self, heads, context):
        """Return what attention computes with, for cost.py: the mean width of all heads' scores and
        values, and half of what the cache holds; for each of `context` positions."""
        scores = self.qk_nope_head_dim + self.qk_rope_head_dim
        return (heads * (scores + self.v_head_dim) // 2,
                (self.kv_lora_rank + self.qk_rope_head_dim) / 2)

    def count(self, hidden, heads):
        """Return the numbers of a layer's weights in matrices, and in norms."""
        R, N, P, V = (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim,
                      self.v_head_dim)
        queries = heads * (N + P)
        down, rank = (hidden * self.q_lora_rank, self.q_lora_rank) if self.q_lora_rank else (0, 0)
        return (down + (rank or hidden) * queries + hidden * (R + P) + R * heads * (N + V)
                + heads * V * hidden, rank + R)


class LatentAttention(nn.Module):
    """Attention whose keys and values are made from a latent; the modules have DeepSeek's names."""

    def __init__(self, config, part, layer):
        super().__init__()
        C, H = config.hidden_size, config.num_attention_heads
        self.part, self.layer, self.heads = part, layer, H
        queries = H * (part.qk_nope_head_dim + part.qk_rope_head_dim)
        if part.q_lora_rank is None:
            self.q_proj = nn.Linear(C, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(C, part.q_lora_rank, bias=False)  # W_DQ
            self.q_a_layernorm = RMSNorm(part.q_lora_rank, EPS)
            self.q_b_proj = nn.Linear(part.q_lora_rank, queries, bias=False)  # W_UQ and W_QR
        # W_DKV, and W_KR for the key that carries positions.
        self.kv_a_proj_with_mqa = nn.Linear(C, part.kv_lora_rank + part.qk_rope_head_dim,
                                            bias=False)
        self.kv_a_layernorm = RMSNorm(part.kv_lora_rank, EPS)
        self.kv_b_proj = nn.Linear(part.kv_lora_rank,  # W_UK and W_UV, head by head
                                   H * (part.qk_nope_head_dim + part.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * part.v_head_dim, C, bias=False)

    def forward(self, x, rotary, mask, cache=None):
        """x (B, T, C) → (B, T, C); the inputs are those of model.Attention."""
        q_latent = x if self.part.q_lora_rank is None else self.q_a_layernorm(self.q_a_proj(x))
        q, q_rope, latent, k_rope = self.project(x, q_latent, rotary)
        if cache is not None:
            latent, k_rope = cache.append(self.layer, latent, k_rope)  # (B, 1, S, R) and P
        return self.attend(q, q_rope, latent, k_rope, mask)

    def project(self, x, q_latent, rotary):
        """Return what of new positions is compared and kept: queries (B, H, T, N) and rotated ones
        (B, H, T, P), latents (B, 1, T, R) and rotated keys (B, 1, T, P)."""
        part = self.part
        q = self.q_proj(x) if part.q_lora_rank is None else self.q_b_proj(q_latent)
        q = q.unflatten(-1, (self.heads, -1))  # (B, T, H, N + P)
        q, q_rope = q.split([part.qk_nope_head_dim, part.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            [part.kv_lora_rank, part.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_layernorm(latent)[:, None], k_rope[:, :, None]  # one head
        if part.rope_interleave:
            q_rope, k_rope = halves(q_rope), halves(k_rope)
        cos, sin = (table.to(q.dtype) for table in rotary)
        q, q_rope, k_rope = (heads.transpose(1, 2) for heads in (
            q, rotate(q_rope, cos, sin), rotate(k_rope, cos, sin)))
        return q, q_rope, latent, k_rope

    def attend(self, q, q_rope, latent, k_rope, mask):
        """Return what the queries gather from the latents, (B, T, C). For one new token, or one and
        a draft, it pays to leave the old ones compressed."""
        attend = self.absorbed if q.shape[2] <= 2 < latent.shape[2] else self.expanded
        y = attend(q, q_rope, latent, k_rope, mask)  # (B, H, T, V)
        return self.o_proj(y.transpose(1, 2).flatten(-2))

    def expanded(self, q, q_rope, latent, k_rope, mask):
        """q (B, H, T, N), q_rope (B, H, T, P), latent (B, 1, S, R), k_rope (B, 1, S, P) → results
        (B, H, T, V), by way of each head's keys and values."""
        k, v = self.keys_values(latent, k_rope)
        return weighted(torch.cat((q, q_rope), dim=-1), k, v, mask, self.scale)

    def keys_values(self, latent, k_rope):
        """Return each head's keys (B, H, S, N + P) and values (B, H, S, V)."""
        k, v = self.kv_b_proj(latent[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2).split(
            [self.part.qk_nope_head_dim, self.part.v_head_dim], dim=-1)  # (B, H, S, N) and V
        return torch.cat((k, k_rope.expand(*k.shape[:-1], -1)), dim=-1), v

    def absorbed(self, q, q_rope, latent, k_rope, mask):
        """The same without expanding, W_UK taken to the queries and W_UV to the results; without a
        mask for one position (T = 1)."""
        up_k, up_v = self.kv_b_proj.weight.to(q.dtype).unflatten(0, (self.heads, -1)).split(
            [self.part.qk_nope_head_dim, self.part.v_head_dim], dim=1)  # (H, N, R), (H, V, R)
        q = torch.cat((q @ up_k, q_rope), dim=-1)  # (B, H, T, R + P)
        k = torch.cat((latent, k_rope), dim=-1)  # (B, 1, S, R + P): one head for all queries,
        # which stand before it as if they were positions: (B, 1, H·T, R + P).
        mask = None if mask is None else torch.cat([mask] * self.heads, dim=-2)
        # The values are the latents: the first R numbers of the keys, whose others are cut off.
        y = F.scaled_dot_product_attention(q.flatten(1, 2)[:, None], k, k, mask, scale=self.scale)
        return y.view(*q.shape)[..., :self.part.kv_lora_rank] @ up_v.mT

    @property
    def scale(self):
        return (self.part.qk_nope_head_dim + self.part.qk_rope_head_dim) ** -0.5


def halves(x):
    """Reorder (…, P) from pairs of neighbours to what `rotate` takes: all firsts, all seconds."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def weighted(q, k, v, mask, scale):
    """Return softmax(scale·q·kᵀ)·v; a mask of None, as nanoseek/fast gives it, is causal."""
    # torch's kernels that never store the scores want values as wide as keys.
    padded = F.pad(v, (0, max(0, k.shape[-1] - v.shape[-1])))
    y = F.scaled_dot_product_attention(q, k, padded, mask, scale=scale,
                                       is_causal=mask is None and q.shape[2] > 1)
    return y[..., :v.shape[-1]]
