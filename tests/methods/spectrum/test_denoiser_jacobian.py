"""The Jacobian of a denoiser where it is known: Gaussian densities, linear denoisers, small networks."""

import pytest
import torch

import cdn
import cdn_kernels
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, eigenpairs, matrix, probe, row_product

SHAPE, SIGMA = (1, 4, 5), 0.4
SIZE = 20


class Gaussian(torch.nn.Module):
    """log p(y) for x ~ N(mean, C) and y = x + sigma eps at one fixed sigma: a quadratic."""

    def __init__(self, covariance, sigma):
        super().__init__()
        self.mean = torch.rand(len(covariance), dtype=covariance.dtype)
        self.precision = torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=covariance.dtype))

    def forward(self, y):
        z = y.flatten(1) - self.mean
        return -(z @ self.precision * z).sum(1, keepdim=True) / 2


class Linear(cdn.DirectDenoiser):
    """D(y) = A y: a direct denoiser with a Jacobian of one's choice."""

    def __init__(self, a):
        torch.nn.Module.__init__(self)
        self.a = a

    def forward(self, y):
        return y - (y.flatten(1) @ self.a.T).view_as(y)


@pytest.fixture
def covariance():
    """Variances from 2 to 0, the last few equal, in a random basis."""
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
    variances = torch.cat([torch.logspace(0.3, -3, SIZE - 4), torch.full((4,), 1e-4)]).double()
    return basis * variances @ basis.T


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def image(*batch, dtype=torch.float64):
    return torch.rand(*batch, *SHAPE, dtype=dtype)


def generator():
    return torch.Generator().manual_seed(0)


def test_gaussian_eigenpairs_are_variance_over_variance_plus_noise(covariance):
    model, y = Gaussian(covariance, SIGMA), image()
    variances, vectors = torch.linalg.eigh(covariance)
    expected = variances / (variances + SIGMA**2)
    close(matrix(model, y, SIGMA), vectors * expected @ vectors.T)
    pairs = eigenpairs(model, y, SIGMA, 4, 2, generator=generator(), batch_size=3, tolerance=1e-10)
    close(pairs.values, torch.cat([expected.flip(0)[:4], expected.flip(0)[-2:]]))
    close((pairs.vectors[:4].flatten(1) @ vectors.flip(1)[:, :4]).abs(), torch.eye(4).double(), 1e-8)
    assert pairs.vectors.shape == (6, *SHAPE) and pairs.residuals.max() < 1e-9


def test_gaussian_trace_and_posterior_covariance(covariance):
    model, y = Gaussian(covariance, SIGMA), image(3)
    exact = float(torch.trace(covariance @ model.precision))
    probing = probe(Jacobian(model, y, SIGMA), 200, cdn.Noise(1))
    assert ((probing.trace - exact).abs() < 4 * probing.trace_error).all()
    # The standard error of Hutchinson's estimate with random signs is known.
    jacobian = matrix(model, y[0], SIGMA)
    spread = (2 * (jacobian.square().sum() - jacobian.diagonal().square().sum()) / 200).sqrt()
    close(probing.trace_error, spread.expand(3), 0.2 * float(spread))
    assert probing.asymmetry.max() < 1e-14
    # sigma^2 J is the covariance of x given y.
    posterior = covariance - covariance @ model.precision @ covariance
    close(SIGMA**2 * jacobian, posterior)


def test_each_image_has_its_own_noise_level_and_probes(covariance):
    model = Gaussian(covariance, SIGMA)
    v, sigma = image(2), torch.tensor([SIGMA, 2 * SIGMA], dtype=torch.float64)
    jacobian = Jacobian(model, image(2), sigma)
    slopes = v.flatten(1) @ model.precision
    close(jacobian.transposed_product(v).flatten(1), v.flatten(1) - sigma[:, None] ** 2 * slopes)
    probing = probe(jacobian, 3, cdn.Noise(0))
    assert probing.trace[0] != probing.trace[1] and torch.equal(probing.trace, probe(jacobian, 3, cdn.Noise(0)).trace)


def test_rows_of_a_jacobian_that_is_not_symmetric():
    a = torch.randn(SIZE, SIZE, dtype=torch.float64)
    close(matrix(Linear(a), image(), SIGMA, batch_size=7), a)
    rows = torch.randn(11, SIZE, dtype=torch.float64)
    close(row_product(Linear(a), image(), SIGMA, batch_size=4)(rows), rows @ a)


def test_trace_and_asymmetry_of_a_jacobian_that_is_not_symmetric():
    a = torch.randn(SIZE, SIZE, dtype=torch.float64) + torch.eye(SIZE)
    probing = probe(Jacobian(Linear(a), image(2), SIGMA), 150, cdn.Noise(2))
    assert ((probing.trace - a.trace()).abs() < 4 * probing.trace_error).all()
    close(probing.asymmetry, ((a - a.T).norm() / (2 * a.norm())).expand(2), 0.05)
    rotation = torch.randn(SIZE, SIZE, dtype=torch.float64)
    probing = probe(Jacobian(Linear(rotation - rotation.T), image(1), SIGMA), 5, cdn.Noise(0))
    close(probing.asymmetry, torch.ones(1).double())


def test_network_of_a_density_and_network_without_one():
    density = cdn.gradresnet_small(3, 1, width=8).double()
    direct = cdn.DirectDenoiser(1, width=8, blocks=(1, 1)).double()
    torch.nn.init.normal_(direct.out.weight)
    y = image(2)
    expected = torch.autograd.functional.jacobian(lambda y: cdn.denoise(density, y, SIGMA, 2, create_graph=True), y[:1])
    close(matrix(density, y[0], SIGMA, label=2), expected.view(SIZE, SIZE), 1e-10)
    assert probe(Jacobian(density, y, SIGMA), 6, cdn.Noise(0)).asymmetry.max() < 1e-13
    assert probe(Jacobian(density.float(), y.float(), SIGMA), 6, cdn.Noise(0)).asymmetry.max() < 1e-5
    exact = matrix(direct, y[0], SIGMA)
    estimate = probe(Jacobian(direct, y, SIGMA), 100, cdn.Noise(0)).asymmetry[0]
    close(estimate, (exact - exact.T).norm() / (2 * exact.norm()), 0.08)


def test_the_product_is_the_derivative_along_a_direction():
    """Forward mode, which knows nothing of symmetry or of backward passes."""
    model, y, v = cdn.gradresnet_small(3, 1, width=8).double(), image(2), image(2)
    energy = lambda y: model(y).logsumexp(1).sum()
    _, tangent = torch.func.jvp(torch.func.grad(energy), (y,), (v,))
    for impl in ("auto", "reference"):
        with cdn_kernels.using(impl):
            product = Jacobian(model, y, SIGMA).transposed_product(v)
        close(product, v + SIGMA**2 * tangent, 1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_and_gradients_are_left_as_found(mode):
    model = cdn.gradresnet_small(3, 1, width=8)
    frozen = next(model.parameters()).requires_grad_(False)
    with mode():
        y = image(1, dtype=torch.float32)
        jacobian = Jacobian(model, y, SIGMA)
        product = jacobian.transposed_product(torch.ones_like(y))
        assert not torch.is_grad_enabled() and not y.requires_grad
    assert not frozen.requires_grad and all(p.grad is None for p in model.parameters())
    assert not product.requires_grad and not jacobian.denoised.requires_grad
    close(jacobian.denoised, cdn.denoise(model, y, SIGMA), 1e-5)


def test_refusals(covariance):
    with pytest.raises(ValueError, match="got a DirectDenoiser: .* its Jacobian is not symmetric"):
        eigenpairs(Linear(torch.eye(SIZE).double()), image(), SIGMA, 1, 1, generator=generator())
    with pytest.raises(ValueError, match="probes must be at least 2, got 1"):
        probe(Jacobian(Gaussian(covariance, SIGMA), image(1), SIGMA), 1, cdn.Noise(0))
    with pytest.raises(ValueError, match="a ResNet models no density"):
        Jacobian(cdn.ResNet(3, 1, width=8), image(1), SIGMA)
