"""What the tests of means, energies and the other maps of the head share, whatever the backend."""

import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from tests.kernels.oracle import assert_as_exact_as_eager

OPS = torch.ops.cdn_kernels


def images(shape, dtype, layout):
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def assert_head_passes_numerical_checks(backend, shape, layout):
    """Check every map of the head numerically, at both orders, on images of a shape [B, C, H, W] in a layout."""
    a, b = (torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    values, means = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape[:1], shape[:2]))
    for op, inputs in (
        (OPS.channel_mean, (a,)),
        (OPS.sample_square, (a,)),
        (OPS.sample_dot, (a, b)),
        (OPS.sample_scale, (a, values)),
        (lambda v, backend: OPS.channel_spread(v, b.detach(), backend), (means,)),
    ):
        function = lambda *inputs: op(*inputs, backend)
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


def assert_means_and_squares_are_as_exact_as_eager(impl, h):
    """Compare the means of channels and the squares of samples of feature images."""
    assert_as_exact_as_eager(lambda h: cdn_kernels.channel_mean(h, impl=impl), reference.channel_mean, [h])
    squares = lambda h: h.to(reference.compute_dtype(h.dtype)).square().sum(1).mean((1, 2))
    assert_as_exact_as_eager(lambda h: OPS.sample_square(h, impl), squares, [h])


def assert_energy_is_as_exact_as_eager(impl, dtype, layout):
    inputs = [
        images((2, 8, 6, 5), dtype, layout),
        images((2, 16, 3, 3), dtype, layout),
        torch.randn(4, 8, 1, 1).to(dtype),
        torch.randn(8, 16, 1, 1).to(dtype),
    ]
    energy = lambda impl: lambda a, b, m, n: cdn_kernels.energy([a, b], [m, n], impl=impl).log()
    assert_as_exact_as_eager(energy(impl), energy("reference"), inputs)
