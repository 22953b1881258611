"""Train a joint energy model: cross-entropy, and maximum likelihood of the images by a contrast with samples.

The baseline to denoising score matching: the same logits ``f(y)_c = log p(y, c)``, but ``log p(y) = logsumexp f(y)`` is
learned by pushing it up at images and down at samples that a chain of stochastic gradient Langevin dynamics draws from
the model itself. After Grathwohl et al., "Your classifier is secretly an energy based model and you should treat it
like one" (ICLR 2020), Algorithm 1, whose values are the defaults of the settings. There, chains start from uniform
noise, and training is known to diverge; here, as in Yang and Ji, "JEM++" (ICCV 2021), they start from a normal
distribution with the moments of the images, next to where they have to go (JEM++ takes one per class).
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

import cdn_kernels
from cdn.errors import CDNError
from cdn.model.finite import decided
from cdn.noise_keys import CHAINS, JEM, REPLAY, TRAINING
from cdn.objective import Parts
from cdn.training.settings import Settings
from cdn_kernels import Noise
from cdn_kernels import reference as torch_ops
from cdn_kernels.phases import phase

# The paper's images are in [-1, 1], ours in [0, 1]: lengths are half as long, and gradients by them twice as large.
UNIT = 0.5
# So many images give the moments that chains start from.
MOMENT_IMAGES = 1000


class Uniform:
    """Noise that is uniform in [0, 1].

    Args:
        images: [n, C, H, W], of which it takes the shape only.
    """

    def __init__(self, images: Tensor) -> None:
        self.shape = images.shape[1:]

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw [count, C, H, W], with a generator of the CPU."""
        return torch.rand(count, *self.shape, generator=generator)


class Gaussian:
    """The normal distribution with the mean and the covariance of some images.

    A sum of the centered images, weighted with standard normal numbers, has their covariance: the matrix itself, of
    (C H W)^2 numbers, is never formed.

    Args:
        images: float32 [n, C, H, W], on the CPU.
    """

    def __init__(self, images: Tensor) -> None:
        self.mean = images.mean(0)
        self.spread = (images - self.mean).div_(len(images) ** 0.5)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw [count, C, H, W], with a generator of the CPU."""
        weights = torch.randn(count, len(self.spread), generator=generator)
        return self.mean + (weights @ self.spread.flatten(1)).view(count, *self.mean.shape)


STARTS: dict[str, type[Gaussian] | type[Uniform]] = {"gaussian": Gaussian, "uniform": Uniform}


def sgld(
    log_density: Callable[[Tensor], Tensor], y: Tensor, noise: Noise, *, steps: int, step_size: float, deviation: float
) -> Tensor:
    """Walk uphill with noise, some steps: ``y <- y + step_size grad log p(y) + deviation eps``.

    With ``deviation = sqrt(2 step_size)`` and small steps the walk samples from p. Joint energy models take less noise
    for their steps: that samples from ``p^(2 step_size / deviation^2)``, a sharpened density, in few steps.

    Args:
        log_density: a function from y to one value per sample [B].
        y: samples [B, ...].
        noise: a :class:`cdn.Noise` key; step k draws from its offset plus k.
        steps: how many.
        step_size: of the gradient, in squared units of y.
        deviation: standard deviation of the noise of a step, in units of y.

    Returns:
        The last samples, without a graph.
    """
    for k in range(steps):
        eps = cdn_kernels.standard_normal(y.shape, noise.moved(k), dtype=y.dtype, device=y.device)
        y = y + step_size * torch_ops.score(log_density, y) + deviation * eps
    return y


def contrastive_loss(
    model: nn.Module, y: Tensor, labels: Tensor, samples: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Parts]:
    """Compute ``CE(f(y), c) + mean log p(samples) - mean log p(y)``.

    The gradient of the contrast is that of ``-mean log p(y)`` with p normalized, if the samples come from p.

    Args:
        model: a model of log-densities, whose logits of an image do not depend on the others of the batch.
        y: images [B, C, H, W]; a constant, like the samples.
        labels: classes [B].
        samples: [S, C, H, W].
        label_smoothing: of the cross-entropy.

    Returns:
        (loss, parts): a scalar, and a dict of detached scalars ``classification``, ``contrastive`` and ``accuracy``.
    """
    with phase("forward"):
        logits, imagined = model(torch.cat([y, samples])).split([len(y), len(samples)])
    classification = torch_ops.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    contrastive = torch_ops.logsumexp(imagined).mean() - torch_ops.logsumexp(logits).mean()
    parts = dict(
        classification=classification.detach(),
        contrastive=contrastive.detach(),
        accuracy=(decided(logits.detach()) == labels).float().mean(),
    )
    return classification + contrastive, parts


class JointEnergy:
    """The chains of a run, and what a step does with them.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        images: some of the images of the run, float32 [n, C, H, W] in [0, 1], on the CPU: what chains start from.
        count: number of training images; there are no more chains than that.
        device: where the chains live.

    Attributes:
        chains: where they are, float32 [chains, C, H, W]; the replay buffer. Images that make sense are in [0, 1].

    Raises:
        CDNError: fewer chains than a step needs, or an unknown start.
    """

    def __init__(self, settings: Settings, images: Tensor, count: int, device: torch.device) -> None:
        if settings.jem_start not in STARTS:
            raise CDNError(f"jem_start: expected one of {', '.join(STARTS)}, got {settings.jem_start!r}")
        self.settings, self.start = settings, STARTS[settings.jem_start](images)
        count = min(settings.jem_buffer, count)
        if count < settings.batch_size:
            raise CDNError(f"jem_buffer: a batch of {settings.batch_size} images needs as many chains, got {count}")
        self.chains = self.start.draw(count, CHAINS.generator(settings.seed)).to(device)

    def step(self, model: nn.Module, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Parts]:
        """Move some of the chains, and add the gradient of :func:`contrastive_loss` to ``.grad``.

        Args:
            model: a model of log-densities.
            x: images [B, C, H, W] in [0, 1].
            labels: classes [B].
            step: its number, which names all that is drawn.

        Returns:
            (loss, parts), detached.
        """
        settings = self.settings
        with phase("sampler"):
            samples = self.sample(model, len(x), step)
        with phase("noise"):
            y, _ = cdn_kernels.sample_noise(x, UNIT * settings.jem_input_noise, TRAINING.key(settings.seed, step))
        loss, parts = contrastive_loss(model, y, labels, samples, label_smoothing=settings.label_smoothing)
        with phase("backward"), torch.autocast(x.device.type, enabled=False):
            loss.backward()
        return loss.detach(), parts

    def sample(self, model: nn.Module, count: int, step: int) -> Tensor:
        """Pick chains at random, start some of them afresh, move all, and return where they arrive, [count, C, H, W].

        A chain that leaves the finite numbers is returned as it is, for the step to be skipped, and starts afresh.
        """
        settings = self.settings
        generator, device = REPLAY.generator(settings.seed, step), self.chains.device
        chosen = torch.randperm(len(self.chains), generator=generator)[:count].to(device)
        restart = torch.rand(count, generator=generator).to(device) < settings.jem_restart
        with torch.autocast("cpu", enabled=False):
            fresh = self.start.draw(count, generator).to(device)
        y = torch.where(torch_ops.expand(restart, fresh), fresh, self.chains[chosen])
        y = sgld(
            lambda y: torch_ops.logsumexp(model(y)),
            y,
            JEM.key(settings.seed, step * settings.jem_steps),
            steps=settings.jem_steps,
            step_size=UNIT**2 * settings.jem_step_size,
            deviation=UNIT * settings.jem_noise,
        )
        finite = y.isfinite().flatten(1).all(1)
        self.chains[chosen] = torch.where(torch_ops.expand(finite, y), y, fresh)
        return y
