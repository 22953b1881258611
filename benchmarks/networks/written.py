"""Networks of PyTorch alone, as papers describe them and people write them."""

from functools import partial

import torch
from torch import nn

from benchmarks.networks.case import OTHER, SPATIAL, Call, network


class Critic(nn.Sequential):
    """The critic of images of Gulrajani et al., "Improved training of Wasserstein GANs", 2017, without norms."""

    def __init__(self, width, side):
        channels, layers = 3, []
        while side > 4:
            layers += [nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
            channels, width, side = width, 2 * width, side // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(16 * channels, 1))


@network("WGAN-GP critic", SPATIAL, small=dict(width=8, batch=4, side=16), larger=dict(width=64, batch=32, side=32))
def wgan_gp(width, batch, side):
    critic = Critic(width, side)
    real, fake = torch.rand(2, batch, 3, side, side)
    between = torch.lerp(real, fake, torch.rand(batch, 1, 1, 1))

    def loss(outputs, score):
        penalty = (score.flatten(1).norm(dim=1) - 1).square().mean()
        return critic(fake).mean() - critic(real).mean() + 10 * penalty

    return Call(critic, between, loss, log_density=lambda values: values)


class WaveCritic(nn.Sequential):
    """A critic of sound in the manner of Kumar et al., "MelGAN", 2019: grouped, strided, weight-normed 1-D filters."""

    def __init__(self, width):
        normed = nn.utils.parametrizations.weight_norm
        layers = [normed(nn.Conv1d(1, width, 15, padding=7)), nn.LeakyReLU(0.2)]
        for _ in range(3):
            filters = nn.Conv1d(width, 2 * width, 41, stride=4, padding=20, groups=width // 4)
            layers, width = [*layers, normed(filters), nn.LeakyReLU(0.2)], 2 * width
        super().__init__(*layers, normed(nn.Conv1d(width, 1, 3, padding=1)))


@network(
    "1-D critic, weight-normed",
    OTHER,
    small=dict(width=8, batch=2, length=512),
    larger=dict(width=32, batch=8, length=8192),
)
def wave_critic(width, batch, length):
    critic = WaveCritic(width)
    sound = torch.randn(batch, 1, length)

    def loss(patches, score):
        return torch.nn.functional.softplus(-patches).mean() + 5 * score.square().sum((1, 2)).mean()

    return Call(critic, sound, loss, log_density=lambda patches: patches)


@network("PINN", OTHER, small=dict(width=32, points=64), larger=dict(width=128, points=2048))
def pinn(width, points):
    layers = [nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1), nn.Flatten(0)]
    u = nn.Sequential(*layers)
    inside, border = torch.rand(2, points, 2)
    border[:, 0].round_()

    def loss(values, gradient, y):
        second = [torch.autograd.grad(gradient[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(2)]
        source = torch.sin(torch.pi * y).prod(1)
        return (sum(second) + source).square().mean() + u(border).square().mean()

    return Call(u, inside, loss)


class Spectral(nn.Module):
    """A convolution whose filters are numbers for each of the lowest frequencies."""

    def __init__(self, channels, modes):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(2, channels, channels, modes, modes, 2) / channels)

    def forward(self, x):
        f, m, weight = torch.fft.rfft2(x), self.modes, torch.view_as_complex(self.weight)
        out = torch.zeros_like(f)
        for i, rows in enumerate((slice(0, m), slice(-m, None))):
            out[:, :, rows, :m] = torch.einsum("bihw,iohw->bohw", f[:, :, rows, :m], weight[i])
        return torch.fft.irfft2(out, s=x.shape[2:])


class FourierOperator(nn.Module):
    """Li et al., "Fourier neural operator for parametric partial differential equations", 2021."""

    def __init__(self, width, modes):
        super().__init__()
        self.lift, self.project = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
        self.spectral = nn.ModuleList(Spectral(width, modes) for _ in range(4))
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, a):
        h = self.lift(a)
        for spectral, local in zip(self.spectral, self.local):
            h = nn.functional.gelu(spectral(h) + local(h))
        return self.project(h)


@network(
    "Fourier neural operator",
    OTHER,
    small=dict(width=8, modes=4, batch=2, side=16),
    larger=dict(width=32, modes=12, batch=8, side=64),
)
def fourier_operator(width, modes, batch, side):
    operator = FourierOperator(width, modes)
    a, u, sensitivity = torch.randn(3, batch, 1, side, side)

    def loss(solution, score):  # to the solution, and to the sensitivity of its mean to the coefficients
        return (solution - u).square().mean() + (side**2 * score - sensitivity).square().mean()

    return Call(operator, a, loss, log_density=lambda solution: solution.mean((1, 2, 3)))


@network("torch.nn.LSTM", OTHER, small=dict(width=16, batch=4, length=8), larger=dict(width=128, batch=32, length=32))
def lstm(width, batch, length):
    recurrent = nn.LSTM(3, width, num_layers=2, batch_first=True)
    path = torch.randn(batch, length, 3)

    def loss(outputs, score):
        return (score.square().sum((1, 2)) - 1).square().mean()

    return Call(recurrent, path, loss, log_density=lambda outputs: outputs[0][:, -1])


@network(
    "torch.nn.TransformerEncoder",
    OTHER,
    small=dict(width=16, batch=4, length=8),
    larger=dict(width=128, batch=16, length=64),
)
def transformer(width, batch, length):
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    tokens = torch.randn(batch, length, width)

    def loss(outputs, score):
        return (score.square().sum((1, 2)) - 1).square().mean()

    return Call(encoder, tokens, loss, log_density=lambda outputs: outputs.mean(1).logsumexp(1))


class PreActBlock(nn.Module):
    """He et al., "Identity mappings in deep residual networks", 2016; norm(channels) and activation() are layers."""

    def __init__(self, inputs, outputs, stride, norm, activation):
        super().__init__()
        self.branch = nn.Sequential(
            norm(inputs),
            activation(),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            norm(outputs),
            activation(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.skip(x) + self.branch(x)


class PreActResNet18(nn.Sequential):
    """Four stages of two blocks; the size halves and the width doubles from one to the next."""

    def __init__(self, width, norm, activation, classes=10):
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width << stage
            blocks += [PreActBlock(inputs, outputs, 1 + (stage > 0), norm, activation)]
            blocks += [PreActBlock(outputs, outputs, 1, norm, activation)]
            inputs = outputs
        head = [norm(inputs), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        super().__init__(nn.Conv2d(3, width, 3, 1, 1), *blocks, *head)


@network(
    "PreActResNet-18, BatchNorm, ReLU",
    SPATIAL,
    tolerance=0.02,  # where rounding turns a ReLU on or off, the score jumps: eager's two layouts differ by 0.006
    small=dict(norm="batch", width=8, batch=4, side=16),
    larger=dict(norm="batch", width=64, batch=64, side=32),
)
@network(
    "PreActResNet-18, GroupNorm, SiLU",
    SPATIAL,
    small=dict(norm="group", width=8, batch=4, side=16),
    larger=dict(norm="group", width=64, batch=64, side=32),
)
def preact_resnet(norm, width, batch, side):
    layers = dict(batch=(nn.BatchNorm2d, nn.ReLU), group=(partial(nn.GroupNorm, 4), nn.SiLU))
    classifier = PreActResNet18(width, *layers[norm])
    labels, noise, sigma = torch.randint(10, (batch,)), torch.randn(batch, 3, side, side), 0.2
    images = torch.rand(batch, 3, side, side) + sigma * noise

    def loss(logits, score):
        return torch.nn.functional.cross_entropy(logits, labels) + (sigma * score + noise).square().mean()

    return Call(classifier, images, loss)
