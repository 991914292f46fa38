"""fast/norm.py: torch's rms_norm, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek.fast import norm as fast
from nanoseek.model import RMSNorm


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), width=st.integers(1, 40),
       scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]), eps=st.sampled_from([1e-6, 1e-2]),
       seed=st.integers(0, 99))
def test_values_and_gradients_equal_torchs(shape, width, scale, eps, seed):
    """Also of a row of zeros, and where eps counts more than x."""
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(*shape, width, generator=generator).double()).requires_grad_()
    weight = torch.randn(width, generator=generator).double().requires_grad_()
    upstream = torch.randn(x.shape, generator=generator).double()
    results = [(y, *torch.autograd.grad(y, (x, weight), upstream)) for y in (
        fast.WrittenOutNorm.apply(x, weight, eps), F.rms_norm(x, (width,), weight, eps))]
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_its_gradient_is_the_derivative():
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
                 for shape in ((3, 2, 7), (7,)))
    assert torch.autograd.gradcheck(lambda *inputs: fast.WrittenOutNorm.apply(*inputs, 1e-6),
                                    (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module_equals_the_chapters(dtype):
    chapters, faster = RMSNorm(32, 1e-6), fast.FastRMSNorm(32, 1e-6)
    torch.nn.init.uniform_(chapters.weight, 0.5, 2)
    faster.load_state_dict(chapters.state_dict())
    x = (3 * torch.randn(4, 5, 32)).to(dtype).requires_grad_()
    results = [(y, *torch.autograd.grad(y.float().square().sum(), (x, module.weight)))
               for module in (chapters, faster) for y in [module(x)]]
    assert results[1][0].dtype == dtype
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-2 if dtype != torch.float32 else 1e-5,
                                   atol=1e-2 if dtype != torch.float32 else 1e-4)
    with torch.no_grad():  # without gradients both are torch's own
        assert torch.equal(faster(x), chapters(x))
