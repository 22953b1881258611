"""The exact identities of a classification-denoising network, in float64."""

import pytest
import torch
import torch.nn.functional as F

import cdn
from cdn.model.head import HEADS
from cdn_kernels import reference as ops

SIGMA = 0.3


def make(head="log-energy", norm="scale-preserving", **options):
    """A small random model in float64 with gains away from 1."""
    model = cdn.gradresnet_small(5, 3, width=8, head=head, norm=norm, **options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
    return model


def images(batch=3, height=7, width=6):
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.fixture(params=[(h, n) for h in HEADS for n in ("plain", "scale-preserving")], ids="-".join)
def model(request):
    return make(*request.param)


def test_difference_of_denoisers_is_the_adversarial_direction(model):
    """Identity 1: D(y, c) - D(y) = sigma^2 grad_y log p(c | y)."""
    y, label = images(), torch.tensor([0, 4, 2])
    x = y.clone().requires_grad_()
    posterior = F.log_softmax(model(x), 1).gather(1, label[:, None]).sum()
    (gradient,) = torch.autograd.grad(posterior, x)
    difference = cdn.denoise(model, y, SIGMA, label) - cdn.denoise(model, y, SIGMA)
    # The difference of two scores of size |s| carries their rounding.
    scale = float(cdn.score(model, y).abs().max())
    torch.testing.assert_close(difference, SIGMA**2 * gradient, rtol=1e-10, atol=1e-12 * scale)


def test_posterior_mean_of_conditional_denoisers_is_the_denoiser(model):
    """Identity 2: sum_c p(c | y) D(y, c) = D(y)."""
    y = images()
    posterior = F.softmax(model(y), 1)
    mixture = sum(posterior[:, c, None, None, None] * cdn.denoise(model, y, SIGMA, c) for c in range(5))
    close(mixture, cdn.denoise(model, y, SIGMA))


def test_jacobian_of_the_denoiser_is_symmetric(model):
    """Identity 3: D is the gradient of a scalar, so its Jacobian is symmetric."""
    y = images(1, 3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda y: cdn.denoise(model, y, SIGMA, create_graph=True), y)
    jacobian = jacobian.reshape(y.numel(), y.numel())
    close(jacobian, jacobian.mT)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("factor", [1e-3, 0.5, 7.0])
def test_scale_preserving_norm_is_homogeneous(eps, factor):
    """Identity 5, first half: N(a b) = a N(b) for any relative eps, with GELU taken out of the way."""
    # Large positive values, where GELU is the identity to rounding also after scaling.
    b = 40.0 + 1e4 * torch.rand(2, 16, 5, 4, dtype=torch.float64)
    gain = torch.rand(16, dtype=torch.float64) + 0.5
    factor = max(factor, 1.0) if factor > 1 else 1 + factor
    normalized = [ops.gelu_group_norm(a * b, gain, 2, eps=eps) for a in (1.0, factor)]
    close(normalized[1], factor * normalized[0])


@pytest.mark.parametrize("factor", [1e-3, 0.4, 30.0])
def test_homogeneous_model_has_a_homogeneous_score(factor):
    """Identity 5, second half: s(a y) = s(y) / a and <y, s> = -d, for y measured from the mean."""
    model = make(homogeneous=True, mean=0.0)
    y = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    score = cdn.score(model, y)
    close(cdn.score(model, factor * y), score / factor)
    close((y * score).sum((1, 2, 3)), torch.full((3,), -90.0, dtype=torch.float64))


def four_sweeps(model, y, labels, sigma, eps, weight):
    """The parameter gradient of the joint loss as the derivative of a directional derivative.

    Sweeps 1 and 2 give the score; its adjoint ``ydot = dL/ds`` is then a constant, and
    ``d<ydot, s>/dtheta = d/dtheta d/dh E(y + h ydot)``.
    """
    parameters = dict(model.named_parameters())

    def energy(p, y):
        return torch.func.functional_call(model, p, y).logsumexp(1).sum()

    score = torch.func.grad(lambda y: energy(parameters, y))(y)
    residual = ops.expand(sigma, y) * score + eps
    ydot = weight * 2 * ops.expand(sigma, y) * residual / y.numel()

    def directional(p):
        _, derivative = torch.func.jvp(lambda y: energy(p, y), (y,), (ydot,))
        return derivative + F.cross_entropy(torch.func.functional_call(model, p, y), labels)

    return torch.func.grad(directional)(parameters)


def forward_over_reverse(model, y, labels, sigma, eps, weight, direction):
    """The derivative of the joint loss along a direction in parameter space."""
    parameters = dict(model.named_parameters())

    def loss(p):
        energy = lambda y: torch.func.functional_call(model, p, y).logsumexp(1).sum()
        score = torch.func.grad(energy)(y)
        classification = F.cross_entropy(torch.func.functional_call(model, p, y), labels)
        return classification + weight * ops.denoising_loss(score, sigma, eps)

    return torch.func.jvp(loss, (parameters,), (direction,))[1]


def test_three_ways_to_the_gradient_agree(model):
    """Identity 6: double backward, forward-over-reverse and the four sweeps."""
    x, eps, labels = images(), torch.randn(3, 3, 7, 6, dtype=torch.float64), torch.tensor([1, 0, 3])
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    loss, _ = cdn.joint_loss(model, x, labels, sigma, eps, denoising_weight=0.7)
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    y, _ = ops.sample_noise(x, sigma, eps)
    sweeps = four_sweeps(model, y, labels, sigma, eps, 0.7)
    scale = max(float(g.abs().max()) for g in gradient.values())
    for name, value in gradient.items():
        torch.testing.assert_close(sweeps[name], value, rtol=1e-8, atol=1e-9 * scale, msg=lambda m: f"{name}: {m}")
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = sum((gradient[name] * direction[name]).sum() for name in gradient)
    close(forward_over_reverse(model, y, labels, sigma, eps, 0.7, direction), expected, 1e-8)
