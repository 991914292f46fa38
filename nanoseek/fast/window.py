"""A sliding window by blocks: keys that no query can see are never multiplied.

What the chapter spends: all T² scores, of which a mask hides those outside the window w. A row of
4,096 positions with a window of 128 has 32 times as many as count.

The idea: cut the row into blocks of queries. Each gets a copy of the keys that it may see, those of
itself and of a few blocks before it. Then all blocks are computed like rows of a batch. With blocks
of half a window that makes T·1.5w scores, and copies linear in T (Longformer, arXiv 2004.05150).

The saving is printed by `python tests/bench/bench_model.py window`.
"""

import collections

import torch
import torch.nn.functional as F

from nanoseek.fast.attention import FastAttention, additive
from nanoseek.fast.loss import product_dtype
from nanoseek.model import Transformer

WINDOW_BLOCK = 64  # queries in a block, at least: fewer would idle a core
# The masks of blocks, (B·n, 1, size, (back + 1)·size), and how many blocks each looks back.
Blocks = collections.namedtuple("Blocks", "mask back")


def block_mask(window, document_ids, dtype):
    """Return the Blocks of documents (B, T), whose ids are not below 0: n blocks in each row."""
    size = max(WINDOW_BLOCK, -(-window // 2))
    back, padding = -(-(window - 1) // size), -document_ids.shape[1] % size
    # Both are cut alike; a row's last block, and what it sees before its first, is padding: -1.
    queries = F.pad(document_ids, (0, padding), value=-1).unfold(1, size, size)  # (B, n, size)
    keys = F.pad(document_ids, (back * size, padding), value=-1).unfold(
        1, (back + 1) * size, size)  # (B, n, (back + 1)·size)
    at = torch.arange(-back * size, size, device=document_ids.device)  # 0: a block's first query
    distance = at[-size:, None] - at
    # Padded queries see padding, themselves at least: a row that saw nothing would be 0/0.
    seen = (distance >= 0) & (distance < window) & (queries[..., None] == keys[:, :, None])
    return Blocks(additive(seen.flatten(0, 1)[:, None], dtype), back)


class WindowAttention(FastAttention):
    def attend(self, q, k, v, mask):
        if not isinstance(mask, Blocks):
            return super().attend(q, k, v, mask)
        (B, _, T, _), (mask, back) = q.shape, mask
        size, n = mask.shape[2], len(mask) // B

        def cut(x, back):  # (B, heads, T, D) → (B·n, heads, (back + 1)·size, D)
            x = F.pad(x, (0, 0, back * size, n * size - T)).unflatten(2, (-1, size))
            x = x.transpose(1, 2)  # (B, back + n, heads, size, D)
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
