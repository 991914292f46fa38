"""Attention over short rows: a few large matrix products instead of many small tiles.

What the chapter spends: torch's scaled_dot_product_attention goes through the scores in small
tiles, so that rows of any length fit. On a CPU each tile is a call with little to do. With AVX-512,
in bf16 or by onednn.py, the calls cost more than the arithmetic. Elsewhere torch's kernel stays:
with AVX2 this one takes two to four times as long.

The idea: up to SHORT keys the scores of a whole block of queries fit into the processor's cache.
One product makes them, a second the results. Keys after the block's last query are left out.

For the backward pass only q, k, v and y are kept, and the weights computed again, as FlashAttention
does (arXiv 2205.14135, §3.1 and appendix B.2). The gradient, for one query with scores s = q·Kᵀ,
weights p = softmax(s) and result y = p·V, when g = ∂loss/∂y arrives:

    ∂V = pᵀ·g    ∂p = g·Vᵀ    ∂q = ∂s·K    ∂K = ∂sᵀ·q
    ∂s = p ∘ (∂p − Σ p∘∂p)     since ∂pⱼ/∂sᵢ = pⱼ·([i = j] − pᵢ)
       = p ∘ (∂p − Σ g∘y)      since Σⱼ pⱼ·∂pⱼ = Σⱼ pⱼ·(g·vⱼ) = g·y: D terms, and no weights

The saving is printed by `tests/bench/bench_model.py attention`, that of a step by `… kernels`."""

import math

import torch
import torch.nn.functional as F

from nanoseek.model import Attention

SHORT = 256  # keys up to which plain products can be faster: see the top of this file
SCORES_CHUNK = 1 << 19  # scores of a block: 2 MB of fp32, which stays in the cache
WIDE_VECTORS = "AVX512" in torch.backends.cpu.get_cpu_capability()


class ShortAttention(torch.autograd.Function):
    """softmax(q·kᵀ/√D + mask)·v of q (B, H, T, D), k and v (B, K, S, D); mask None: causal."""
    @staticmethod
    def forward(ctx, q, k, v, mask):
        ctx.shape = q.shape
        # Heads that share their keys stand together: their queries are the rows of one product.
        q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1)).flatten(0, 1)
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B·K, S, D), and q: (B·K, H/K, T, D)
        y = torch.empty_like(q)
        with torch.autocast("cpu", enabled=False):
            for rows, end, weights in blocks(q, k, mask):
                y[:, :, rows] = (weights @ v[:, :end]).unflatten(1, (q.shape[1], -1))
        ctx.save_for_backward(q, k, v, y, mask)
        return y.view(ctx.shape)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, y, mask = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        row_sum = (grad * y).sum(dim=-1, keepdim=True)  # g·y of each query
        q_grad = torch.empty_like(q)
        wide = torch.promote_types(k.dtype, torch.float32)  # for sums over blocks
        k_grad, v_grad = torch.zeros(2, *k.shape, dtype=wide)
        for rows, end, weights in blocks(q, k, mask):
            q_block, grad_block = q[:, :, rows].flatten(1, 2), grad[:, :, rows].flatten(1, 2)
            v_grad[:, :end] += weights.mT @ grad_block
            scores_grad = grad_block @ v[:, :end].mT  # ∂p, of which ∂s is made in place
            scores_grad.sub_(row_sum[:, :, rows].flatten(1, 2)).mul_(weights)
            q_grad[:, :, rows] = (scores_grad @ k[:, :end]).unflatten(1, (q.shape[1], -1))
            k_grad[:, :end] += scores_grad.mT @ q_block
        return (q_grad.mul_(q.shape[-1] ** -0.5).view(ctx.shape),
                *(x.to(k.dtype).unflatten(0, (ctx.shape[0], -1)) for x in (k_grad, v_grad)), None)


def blocks(q, k, mask):
    """Yield (rows, end, weights): a slice of the queries, how many keys the last of them may see,
    and the weights (B·K, H/K·rows, end) with which they see these."""
    (heads, groups, T, _), S = q.shape, k.shape[1]
    if mask is None:
        mask = torch.full((T, S), -math.inf, dtype=q.dtype).triu_(S - T + 1)
    size = max(16, SCORES_CHUNK // (heads * groups * S) // 16 * 16)
    for first in range(0, T, size):
        rows, end = slice(first, min(first + size, T)), S - T + min(first + size, T)
        scores = q[:, :, rows].flatten(1, 2) @ k[:, :end].mT
        hidden = mask[..., None, rows, :end]  # of (T, S) for all, or of (B, 1, T, S)
        scores.view(len(hidden), -1, groups, *hidden.shape[-2:]).add_(hidden)
        yield rows, end, scores.softmax(dim=-1)


class FastAttention(Attention):
    def attend(self, q, k, v, mask):
        if WIDE_VECTORS and q.is_cpu and 1 < q.shape[2] and k.shape[2] <= SHORT \
                and not torch.compiler.is_compiling() \
                and (q.dtype == torch.bfloat16 or q.dtype == torch.float32 and  # which oneDNN makes
                     torch.backends.mkldnn.matmul.fp32_precision == "bf16"):
            return ShortAttention.apply(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None,
                                              enable_gqa=q.shape[1] != k.shape[1])


def additive(seen, dtype):
    """Return 0 where `seen` and -inf elsewhere, to be added to the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)
