"""A sliding window by blocks: keys that no query can see are never multiplied.

What the chapter spends: all T² scores, of which a mask hides those outside the window w. A row of
4,096 positions with a window of 128 has 32 times as many as count.

The idea: cut the row into blocks of queries. Each gets a copy of the keys that it may see, those of
itself and of a few blocks before it. Then all blocks are computed like rows of a batch. With blocks
of half a window that makes T·1.5w scores, and copies linear in T (Longformer, arXiv 2004.05150).
The saving is printed by `python tests/bench/bench_model.py window`."""

import torch
import torch.nn.functional as F

from nanoseek.fast.attention import FastAttention, additive
from nanoseek.fast.loss import product_dtype
from nanoseek.model import Transformer

WINDOW_BLOCK = 64  # queries in a block, at least: fewer would idle a core


def block_mask(window, document_ids, dtype):
    """Return masks (B·n, 1, size, (back + 1)·size), of n blocks a row; document_ids (B, T): ≥ 0."""
    size = max(WINDOW_BLOCK, -(-window // 2))
    back, padding = -(-(window - 1) // size), -document_ids.shape[1] % size
    # What stands before a row's first block and at the end of its last is padding, -1. Padded
    # queries see padding, themselves at least: a row that saw nothing would be 0/0.
    keys = F.pad(document_ids, (back * size, padding), value=-1).unfold(1, (back + 1) * size, size)
    same = keys[:, :, -size:, None] == keys[:, :, None]  # (B, n, size, (back + 1)·size)
    at = torch.arange(-back * size, size, device=document_ids.device)  # 0: a block's first query
    distance = at[-size:, None] - at
    seen = same & (distance >= 0) & (distance < window)
    return additive(seen.flatten(0, 1)[:, None], dtype)


class WindowAttention(FastAttention):
    def attend(self, q, k, v, mask):
        B, _, T, _ = q.shape
        if mask is None or mask.shape[-2:] == (T, k.shape[2]):  # it is not of blocks
            return super().attend(q, k, v, mask)
        size, n, back = mask.shape[2], len(mask) // B, mask.shape[3] // mask.shape[2] - 1

        def cut(x, back):  # (B, heads, T, D) → (B·n, heads, (back + 1)·size, D)
            x = F.pad(x, (0, 0, back * size, n * size - T)).unflatten(2, (-1, size)).transpose(1, 2)
            # Block i sees blocks i - back to i: shifted copies, joined along the positions.
            return torch.cat([x[:, i:i + n] for i in range(back + 1)], dim=3).flatten(0, 1)
        y = super().attend(cut(q, 0), cut(k, back), cut(v, back), mask)  # (B·n, H, size, D)
        return y.unflatten(0, (B, n)).transpose(1, 2).flatten(2, 3)[:, :, :T]


class FastMask(Transformer):
    """The mask as the faster attention adds it, made once and not in each layer."""
    def mask(self, ids, columns, document_ids=None):
        whole = len(columns) == ids.shape[1]  # nothing before the ids in a cache
        window, dtype = self.config.sliding_window, product_dtype(self.lm_head.weight)
        if whole and window and len(columns) > window:
            documents = torch.zeros_like(ids) if document_ids is None else document_ids.long()
            return block_mask(window, documents, dtype)
        if whole and document_ids is None:
            return None  # causal, which needs no mask
        return additive(super().mask(ids, columns, document_ids), dtype)
