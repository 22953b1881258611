"""The joint objective and the density functions: values, modes, errors."""

import math

import pytest
import torch
import torch.nn.functional as F

import cdn
from cdn_kernels import reference as ops


@pytest.fixture
def model():
    return cdn.gradresnet_small(4, 1, width=8)


def images(batch=5):
    return torch.rand(batch, 1, 6, 7)


def test_joint_loss_is_what_it_says(model):
    model.double()
    x, eps, labels = images().double(), torch.randn(5, 1, 6, 7).double(), torch.tensor([0, 1, 2, 3, 0])
    sigma = torch.tensor([0.1, 0.2, 0.0, 0.4, 1.0], dtype=torch.float64)
    loss, parts = cdn.joint_loss(model, x, labels, sigma, eps, denoising_weight=0.3)
    s = sigma.view(-1, 1, 1, 1)
    y = x + s * eps
    error = (cdn.denoise(model, y, sigma) - x)[sigma > 0] / s[sigma > 0]
    torch.testing.assert_close(parts["denoising"], error.square().mean())
    torch.testing.assert_close(parts["classification"], F.cross_entropy(model(y), labels).detach())
    torch.testing.assert_close(loss.detach(), parts["classification"] + 0.3 * parts["denoising"])


def test_identity_denoiser_scores_one():
    flat = lambda y: 0 * y.flatten(1)[:, :3]
    _, parts = cdn.joint_loss(
        flat, torch.rand(64, 3, 16, 16), None, cdn.NoiseLevels(), cdn.Noise(1), classification_weight=0
    )
    assert float(parts["denoising"]) == pytest.approx(1, abs=0.02)


def test_clean_images_take_part_in_the_cross_entropy_only(model):
    x, labels = images(), torch.tensor([0, 1, 2, 3, 0])
    loss, parts = cdn.joint_loss(model, x, labels, 0.0, cdn.Noise(0))
    assert float(parts["denoising"]) == 0
    loss.backward()
    expected = torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()), allow_unused=True)
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if gradient is None else gradient)


def test_direct_denoiser_shares_the_loss():
    model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1))
    x = images()
    sigma = torch.tensor([0.1, 0.0, 0.3, 0.4, 0.5])
    loss, parts = cdn.joint_loss(model, x, None, sigma, cdn.Noise(3), classification_weight=0)
    y, _ = ops.sample_noise(x, sigma, cdn.Noise(3))
    keep = sigma > 0
    error = (cdn.denoise(model, y, sigma) - x)[keep] / sigma[keep].view(-1, 1, 1, 1)
    torch.testing.assert_close(parts["denoising"], error.square().mean(), rtol=1e-4, atol=0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_direct_denoiser_starts_as_the_identity_and_learns_from_there():
    model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1))
    y = images()
    assert torch.equal(cdn.denoise(model, y, 0.1), y)
    loss, _ = cdn.joint_loss(model, y, None, 0.1, cdn.Noise(0), classification_weight=0)
    loss.backward()
    assert model.out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_density_functions_leave_modes_as_found(model, mode):
    y = images()
    with mode():
        before = torch.is_grad_enabled()
        results = [
            cdn.log_prob(model, y),
            cdn.score(model, y),
            cdn.score(model, y, 2),
            cdn.denoise(model, y, 0.1),
            cdn.denoise(model, y, torch.full((5,), 0.1), torch.zeros(5, dtype=torch.long)),
            cdn.estimate_sigma(model, y),
        ]
        assert torch.is_grad_enabled() == before
    assert [tuple(r.shape) for r in results] == [(5,), (5, 1, 6, 7), (5, 1, 6, 7), (5, 1, 6, 7), (5, 1, 6, 7), (5,)]
    assert not any(r.requires_grad for r in results) and not y.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("direct", [False, True])
def test_joint_loss_keeps_no_graph_where_grad_mode_is_off(model, mode, direct):
    if direct:
        model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1))
    arguments = images(), torch.tensor([0, 1, 2, 3, 0]), cdn.NoiseLevels(), cdn.Noise(5)
    weights = dict(classification_weight=0.0 if direct else 1.0)
    with mode():
        loss, parts = cdn.joint_loss(model, *arguments, **weights)
        assert not torch.is_grad_enabled()
    expected, _ = cdn.joint_loss(model, *arguments, **weights)
    assert expected.requires_grad and not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize(
    "kind, weights",
    [
        ("joint", {}),
        ("joint", dict(denoising_weight=0.0, label_smoothing=0.1)),
        ("joint", dict(classification_weight=0.0)),
        ("classifier", dict(denoising_weight=0.0)),
        ("denoiser", dict(classification_weight=0.0)),
    ],
)
def test_joint_step_accumulates_the_gradient_of_the_joint_loss(kind, weights, mode):
    build = {
        "joint": lambda: cdn.gradresnet_small(4, 1, width=8),
        "classifier": lambda: cdn.ResNet(4, 1, width=8),
        "denoiser": lambda: cdn.DirectDenoiser(1, width=8, blocks=(1, 1)),
    }[kind]
    mine, theirs = build().double(), build().double()
    theirs.load_state_dict(mine.state_dict())
    arguments = images().double(), torch.tensor([0, 1, 2, 3, 0]), cdn.NoiseLevels(clean_share=0.3), cdn.Noise(5)
    for _ in range(2):
        with mode():
            loss, parts = cdn.joint_step(mine, *arguments, **weights)
        expected, expected_parts = cdn.joint_loss(theirs, *arguments, **weights)
        expected.backward()
        torch.testing.assert_close((loss, parts), (expected.detach(), expected_parts))
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_modes_survive_an_exception(model):
    y = images()
    with torch.no_grad():
        with pytest.raises(ValueError, match="expected images"):
            cdn.score(model, y[:, 0])
        assert not torch.is_grad_enabled()
    assert not y.requires_grad


def test_create_graph_reaches_input_and_parameters(model):
    y = images().requires_grad_()
    for value in (
        cdn.score(model, y, create_graph=True),
        cdn.denoise(model, y, 0.1, 1, create_graph=True),
        cdn.log_prob(model, y, create_graph=True),
    ):
        gradients = torch.autograd.grad(value.square().sum(), [y, model.trunk.stem[0].weight])
        assert all(float(g.abs().sum()) > 0 for g in gradients)


def test_score_is_the_gradient_of_log_prob(model):
    model.double()
    y, v = images().double(), torch.randn(5, 1, 6, 7).double()
    h = 1e-5
    difference = (cdn.log_prob(model, y + h * v) - cdn.log_prob(model, y - h * v)) / (2 * h)
    torch.testing.assert_close((cdn.score(model, y) * v).sum((1, 2, 3)), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("curve", ["rising", "turning back"])
def test_estimate_sigma_inverts_the_calibration(curve):
    """For a Gaussian prior the score is linear and its norm gives the noise level away."""
    prior = 0.2

    class Gaussian(torch.nn.Module):
        def __init__(self, sigma):
            super().__init__()
            self.sigma = sigma
            self.calibration_sigma = torch.logspace(-2, 0, 41)
            self.calibration_mean_square = 1 / (prior**2 + self.calibration_sigma**2)
            if curve == "turning back":
                self.calibration_mean_square[:10] = self.calibration_mean_square[20]

        def forward(self, y):
            return -y.flatten(1).square().sum(1, keepdim=True) / (2 * (prior**2 + self.sigma**2))

    for sigma in (0.15, 0.4, 0.9, 3.0):
        y = (prior**2 + sigma**2) ** 0.5 * torch.randn(8, 3, 64, 64)
        torch.testing.assert_close(cdn.estimate_sigma(Gaussian(sigma), y), torch.full((8,), sigma), rtol=0.08, atol=0)


def test_calibrate_measures_the_score(model):
    x = images(12)
    cdn.calibrate(model, x, cdn.Noise(1), batch_size=12)
    y, _ = ops.sample_noise(x, model.calibration_sigma[7], cdn.Noise(1))
    torch.testing.assert_close(model.calibration_mean_square[7], cdn.score(model, y).square().mean())


def test_uncalibrated_estimate_is_the_bare_one(model):
    y = images()
    bare = cdn.score(model, y).square().mean((1, 2, 3)).rsqrt()
    torch.testing.assert_close(cdn.estimate_sigma(model, y), bare, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, y: cdn.denoise(m, y, torch.rand(3)), "sigma must be a number or one value per image"),
        (lambda m, y: cdn.score(m, y, 4), r"label must be in \[0, 3\], got 4"),
        (lambda m, y: cdn.score(m, y, torch.zeros(2, dtype=torch.long)), "one integer per image"),
        (lambda m, y: cdn.joint_loss(m, y, None, 0.1, cdn.Noise(0)), "labels must be one class per image"),
        (
            lambda m, y: cdn.joint_loss(m, y, None, 0.1, cdn.Noise(0), classification_weight=0, denoising_weight=0),
            "nothing to minimize",
        ),
        (lambda m, y: cdn.score(cdn.ResNet(4, 1, width=8, blocks=(1,)), y), "models no density"),
    ],
)
def test_bad_input_gets_one_sentence(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, images())


class Quadratic(torch.nn.Module):
    """The family that holds the optimum of a mixture of Gaussian classes: f_c = w_c.y - a |y|^2 / 2 + b_c."""

    def __init__(self, classes, dimension):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(classes, dimension))
        self.b = torch.nn.Parameter(torch.zeros(classes))
        self.a = torch.nn.Parameter(torch.ones(()))

    def forward(self, y):
        y = y.flatten(1)
        return y @ self.w.T - self.a * y.square().sum(1, keepdim=True) / 2 + self.b


def test_gaussian_mixture_converges_to_the_known_score():
    """Identity 4: at one noise level the learned score is that of the noisy mixture, and the classes are Bayes'."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 4, generator=generator)
    prior, tau, sigma = torch.tensor([0.5, 0.3, 0.2]), 0.3, 0.5
    variance = tau**2 + sigma**2

    def exact(y):
        return prior.log() - (y.flatten(1)[:, None] - means).square().sum(2) / (2 * variance)

    def draw(count):
        labels = torch.multinomial(prior, count, replacement=True, generator=generator)
        x = means[labels] + tau * torch.randn(count, 4, generator=generator)
        return x.view(count, 1, 2, 2), labels

    def error(model):
        x, _ = draw(4000)
        y, _ = ops.sample_noise(x, sigma, cdn.Noise(9))
        wanted = ops.score(lambda y: exact(y).logsumexp(1), y)
        found = ops.score(lambda y: model(y).logsumexp(1), y)
        return math.sqrt(float((found - wanted).square().mean() / wanted.square().mean()))

    model = Quadratic(3, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    start = error(model)
    for step in range(300):
        x, labels = draw(2048)
        loss, _ = cdn.joint_loss(model, x, labels, sigma, cdn.Noise(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert error(model) < 0.02 < start
    y, _ = draw(1000)
    posterior = model(y).softmax(1)
    torch.testing.assert_close(posterior, exact(y).softmax(1), rtol=0, atol=0.03)


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_gradients_survive_large_log_densities(impl):
    """Log-densities of thousands leave no digits for their differences, unless what they share is taken out."""

    def gradient(dtype):
        torch.manual_seed(0)
        model = cdn.gradresnet18(10, 3, width=16).to(dtype)
        eps = torch.randn(4, 3, 16, 16, dtype=torch.float64).to(dtype)
        x, labels = torch.rand(4, 3, 16, 16, dtype=torch.float64).to(dtype), torch.arange(4)
        assert model(x).abs().max() > 500
        cdn.joint_step(model, x, labels, 0.1, eps, impl=impl)
        return torch.cat([p.grad.double().flatten() for p in model.parameters()])

    exact = gradient(torch.float64)
    assert (gradient(torch.float32) - exact).norm() < 5e-4 * exact.norm()
