"""RMSNorm with its gradient written out, for fewer passes over x.

What the chapter spends: a CPU makes rms_norm by small steps, and autograd derives a step back for
each. All pass over x, and keep more for the gradient than it needs.

The idea: write the derivative of the whole by hand and keep what it needs: n = x/r, one number r a
row, and the weight w. With y = n∘w, r = √(Σx²/C + eps) and g = ∂loss/∂y:

    ∂w = Σ over rows of g∘n
    ∂n = g∘w,  and  ∂r/∂xᵢ = xᵢ/(C·r) = nᵢ/C
    ∂xᵢ = ∂nᵢ/r − Σⱼ ∂nⱼ·xⱼ/r² · ∂r/∂xᵢ = (∂nᵢ − nᵢ·m)/r  with  m = Σⱼ ∂nⱼ·nⱼ / C

So the part of ∂n along n falls away: a longer x has the same n. The product g∘n serves twice. The
time of a norm is printed by `bench_model.py kernels`; a whole step saves memory more than time.
"""

import torch

from nanoseek.model import RMSNorm


class WrittenOutNorm(torch.autograd.Function):
    """x (…, C) / √(mean(x²) + eps) · weight."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # 1/r
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, weight, scale = ctx.saved_tensors
        product = grad * normed
        mean = (product @ weight / weight.shape[0]).unsqueeze(-1)
        x_grad = (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return x_grad, product.flatten(0, -2).sum(0), None


class FastRMSNorm(RMSNorm):
    def forward(self, x):
        if x.is_cpu and torch.is_grad_enabled():  # a GPU has a kernel of its own
            return WrittenOutNorm.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)
        return super().forward(x)
