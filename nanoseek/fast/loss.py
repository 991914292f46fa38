"""The last product and the cross-entropy in one, some rows at a time: logits are never all there.

What the chapter spends: the logits (N, V) of N targets, their softmax for the backward pass, and
the gradient of both. With a vocabulary of thousands each of these is larger than anything else in a
small model, and each goes through the memory several times.

The idea: the loss is a sum over rows, and the gradient of a row needs no other row. So some rows of
logits, which fit into the cache, are made, used for the loss and both gradients, all in place, and
thrown away: so do Liger Kernel (arXiv 2410.10989, §3.2) and, in part, DeepSeek LLM (§2.4).

The gradient: for logits z with target t, loss = log Σⱼ exp zⱼ − z_t, so

    ∂loss/∂zⱼ = exp zⱼ / Σᵢ exp zᵢ − [j = t] = softmax(z)ⱼ − [j = t]

and from z = h·Wᵀ come ∂h = ∂z·W and ∂W = ∂zᵀ·h. It is known as soon as the logits are: forward
computes it, backward only multiplies it with what arrives.

The saving, in time and memory, is printed by `python tests/bench/bench_model.py kernels`."""

import torch

from nanoseek.model import Head

LOGITS_CHUNK = 1 << 20  # logits at once: 4 MB of fp32, which stays in the cache of a CPU
CUDA_LOGITS_CHUNK = 1 << 28  # there 1 GB: small pieces would leave most of the chip idle
LEAST_ROWS = 256  # in a chunk, since each goes over the whole gradient of the weights


def product_dtype(weight):
    """Return the dtype in which matrix products with a weight are made: its own, or autocast's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class LinearCrossEntropy(torch.autograd.Function):
    """The mean cross-entropy of logits hidden @ weight.T: hidden (N, C), weight (V, C)."""
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        hidden_grad, weight_grad = (torch.zeros_like(x).float() for x in (hidden, weight))
        total = hidden.new_zeros((), dtype=torch.float32)
        chunk = CUDA_LOGITS_CHUNK if hidden.is_cuda else LOGITS_CHUNK
        rows, w = max(LEAST_ROWS, chunk // len(weight)), weight.to(dtype)
        for part in range(0, len(targets), rows):
            h, target = hidden[part:part + rows].to(dtype), targets[part:part + rows, None]
            logits = (h @ w.T).float()  # (rows, V); products in dtype, sums in fp32
            highest = logits.amax(dim=-1, keepdim=True)  # taken off, so that exp cannot overflow
            total -= (logits.gather(1, target) - highest).sum()
            grad = logits.sub_(highest).exp_()
            norm = grad.sum(dim=-1, keepdim=True)
            total += norm.log().sum()
            grad.div_(norm)  # softmax, then minus one at the target
            if torch.compiler.is_compiling():  # which fuses this with all around it
                grad = grad - (torch.arange(len(weight), device=grad.device) == target).float()
            else:
                grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad = grad.to(dtype)
            hidden_grad[part:part + rows] = grad @ w
            weight_grad += grad.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total / len(targets)

    @staticmethod
    def backward(ctx, grad_output):
        # Only here is the mean taken: divided by N before the products, fp16 would lose gradients.
        share = grad_output / len(ctx.saved_tensors[0])
        return *((grad * share).to(dtype) for grad, dtype
                 in zip(ctx.saved_tensors, ctx.dtypes)), None, None


class FastHead(Head):
    def cross_entropy(self, hidden, targets):
        dtype = product_dtype(self.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            return LinearCrossEntropy.apply(hidden, self.weight, targets, dtype)
