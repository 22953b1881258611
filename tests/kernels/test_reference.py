"""The specification itself: known values, hard inputs, and every order of differentiation."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from cdn_kernels import reference as ops

NORMS = [False, True]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def scale_preserving_by_hand(v, gain, groups, eps):
    """The definition, one group of one sample at a time."""
    out = torch.empty_like(v)
    for i, sample in enumerate(v):
        b = F.gelu(sample)
        parts = b.view(groups, -1)
        variance = parts.var(1, correction=0)
        common = variance.mean()
        normalized = (parts - parts.mean(1, keepdim=True)) * (common / (variance + eps * common)).sqrt()[:, None]
        out[i] = normalized.view_as(b) * gain[:, None, None]
    return out


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (8, 2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_norm_is_what_it_says(groups, height, width):
    x, residual, gain = randn(3, 12, height, width), randn(3, 12, height, width), randn(12)
    v = x + residual
    plain = ops.gelu_group_norm(x, gain, groups, residual=residual, eps=0.1, scale_preserving=False)
    torch.testing.assert_close(plain, F.group_norm(F.gelu(v), groups, gain, None, 0.1))
    kept = ops.gelu_group_norm(x, gain, groups, residual=residual, eps=0.1)
    torch.testing.assert_close(kept, torch.nan_to_num(scale_preserving_by_hand(v, gain, groups, 0.1)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_has_same_padding(size, stride):
    x, weight = randn(2, 3, 5, 7), randn(4, 3, size, size)
    out = ops.conv2d_gelu(x, weight, stride)
    assert out.shape == (2, 4, -(-5 // stride), -(-7 // stride))
    torch.testing.assert_close(out, F.gelu(F.conv2d(x, weight, stride=stride, padding=size // 2)))
    assert gradcheck(lambda *a: ops.conv2d_gelu(*a, stride), (x.requires_grad_(), weight.requires_grad_()))
    assert gradgradcheck(lambda *a: ops.conv2d_gelu(*a, stride), (x[:1].detach().requires_grad_(), weight))


@pytest.mark.parametrize("keep", NORMS)
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_norm_differentiates_twice(keep, eps):
    inputs = [randn(2, 4, 3, 2), randn(4), randn(2, 4, 3, 2)]
    inputs = [i.requires_grad_() for i in inputs]
    norm = lambda x, gain, residual: ops.gelu_group_norm(x, gain, 2, residual=residual, eps=eps, scale_preserving=keep)
    assert gradcheck(norm, inputs) and gradgradcheck(norm, inputs)


@pytest.mark.parametrize("keep", NORMS)
def test_constant_samples_and_groups_stay_finite_to_second_order(keep):
    """One sample is constant altogether, another in one of its groups."""
    x = randn(3, 4, 3, 2)
    x[0] = 0.7
    x[1, :2] = -1.0
    x.requires_grad_()
    gain = torch.ones(4, dtype=torch.float64, requires_grad=True)
    z = ops.gelu_group_norm(x, gain, 2, scale_preserving=keep)
    assert float(z[0].detach().abs().max()) < 1e-12
    first = torch.autograd.grad((z * randn(*z.shape)).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), [x, gain])
    assert all(torch.isfinite(t).all() for t in (z, first, *second))
    if keep:
        assert float(first[0].detach().abs().max()) == 0


def test_norm_survives_large_mean_and_small_variance():
    x = (1e3 + 1e-2 * torch.randn(2, 8, 6, 6)).requires_grad_()
    z = ops.gelu_group_norm(x, torch.ones(8), 1, eps=0.0)
    expected = ops.gelu_group_norm(x.detach().double(), torch.ones(8, dtype=torch.float64), 1, eps=0.0)
    torch.testing.assert_close(z.detach().double(), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_in_half_and_computed_in_float32(dtype):
    x, residual, gain = (t.to(dtype) for t in (randn(2, 8, 4, 4), randn(2, 8, 4, 4), randn(8)))
    z = ops.gelu_group_norm(x, gain, 2, residual=residual)
    assert z.dtype == dtype
    expected = ops.gelu_group_norm((x + residual).float(), gain.float(), 2)
    torch.testing.assert_close(z, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_does_not_matter(layout):
    x, gain = randn(2, 8, 4, 3).to(memory_format=layout), randn(8)
    torch.testing.assert_close(ops.gelu_group_norm(x, gain, 2), ops.gelu_group_norm(x.contiguous(), gain, 2))


def test_energy_is_quadratic_and_differentiates_twice():
    features = [randn(2, 3, 4, 5).requires_grad_(), randn(2, 2, 2, 3).requires_grad_()]
    maps = [randn(4, 3, 1, 1).requires_grad_(), randn(1, 2, 1, 1).requires_grad_()]
    q = ops.energy(features, maps)
    by_hand = sum(
        torch.einsum("ec,bchw->behw", a[:, :, 0, 0], h).square().sum((1, 2, 3)) / h[0, 0].numel()
        for h, a in zip(features, maps)
    )
    torch.testing.assert_close(q, by_hand)
    torch.testing.assert_close(ops.energy([3 * h for h in features], maps), 9 * q)
    call = lambda *t: ops.energy(t[:2], t[2:])
    assert gradcheck(call, (*features, *maps)) and gradgradcheck(call, (*features, *maps))


def test_score_takes_any_function_with_one_value_per_sample():
    y = randn(4, 3)
    torch.testing.assert_close(ops.score(lambda y: -y.square().sum(1) / 2, y), -y)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    net = torch.nn.Sequential(*layers).double()
    s = ops.score(net, y, create_graph=True)
    s.square().sum().backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert not ops.score(net, y).requires_grad


@pytest.mark.parametrize("function, message", [(lambda y: y.detach().sum(1), "does not depend on y")])
def test_score_refuses_what_has_none(function, message):
    with pytest.raises(ValueError, match=message):
        ops.score(function, randn(4, 3))


def test_denoising_residual_is_the_error_of_tweedies_denoiser():
    x, eps, s = randn(3, 2, 4, 4), randn(3, 2, 4, 4), randn(3, 2, 4, 4)
    sigma = torch.tensor([0.1, 0.0, 2.0], dtype=torch.float64)
    y, _ = ops.sample_noise(x, sigma, eps)
    level = sigma.view(-1, 1, 1, 1)
    denoised = y + level**2 * s
    residual = ops.denoising_residual(s, sigma, eps)
    torch.testing.assert_close(level * residual, denoised - x)
    assert float(residual[1].abs().max()) == 0
    torch.testing.assert_close(ops.denoising_loss(s, sigma, eps), residual[[0, 2]].square().mean())
    assert float(ops.denoising_loss(s, 0 * sigma, eps)) == 0
    assert float(ops.denoising_loss(0 * s, sigma, eps)) == pytest.approx(float(eps[[0, 2]].square().mean()))


def test_logsumexp_has_the_derivatives_of_torchs():
    logits = (3 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
    assert gradcheck(ops.logsumexp, logits) and gradgradcheck(ops.logsumexp, logits)
    torch.testing.assert_close(ops.logsumexp(logits), logits.logsumexp(1))


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_the_gradient_of_logsumexp_sums_to_one(offset):
    logits = (torch.randn(64, 10) + offset).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.logsumexp(logits).sum(), logits)
    assert (gradient.sum(1) - 1).abs().max() < 1e-6


def test_logsumexp_of_infinities_is_torchs():
    inf = float("inf")
    logits = torch.tensor([[-inf, -inf], [inf, 0.0], [-inf, 2.0], [float("nan"), 0.0]])
    torch.testing.assert_close(ops.logsumexp(logits), logits.logsumexp(1), equal_nan=True)
