"""Train the generators of all classes at once."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.methods.synthesis.generators import ClassGenerators
from cdn.model.inputs import check_counts
from cdn.noise_keys import FITTING


def fit(
    generators: ClassGenerators,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    batch_size: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Train generators on labeled images: each image trains the generator of its class.

    Maximizes the evidence lower bound of Kingma & Welling, "Auto-encoding variational Bayes" (2014),
    ``E_q(z|x,c) log p(x | z, c) - KL(q(z | x, c) || N(0, I))``, with one draw of z, by Adam with a rate that falls to
    0 as a half cosine. Every step sees as many images of each class, whatever their numbers.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators`; trained in place, on their device.
        x: images [N, C, H, W] in [0, 1].
        labels: int64 [N]; every class has images.
        steps: of Adam.
        batch_size: images per class and step, drawn with replacement.
        rate: learning rate at the start.
        seed: of the draws. The same seed gives the same weights on the same machine.
        progress: show a progress bar on stderr.

    Returns:
        The mean of the bound over all images in the last tenth of the steps, in nats per image.

    Raises:
        ValueError: a class without images, a label out of range, a number below 1, or a bound that is not finite.
    """
    check_counts(steps=steps, batch_size=batch_size)
    members = _members(labels, generators.classes)
    generator = FITTING.generator(seed)
    trained = [parameter for parameter in generators.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    recent, last = [], max(steps // 10, 1)
    with torch.enable_grad(), tqdm(range(steps), unit="step", leave=False, disable=not progress) as bar:
        for step in bar:
            picks = torch.stack(
                [indices[torch.randint(len(indices), (batch_size,), generator=generator)] for indices in members], 1
            )
            noise = torch.randn(batch_size, generators.classes, generators.latents, generator=generator)
            bound = evidence_bound(generators, x[picks.to(x.device)], noise.to(x)).mean()
            if not bound.isfinite():
                raise ValueError(f"rate: expected a smaller one than {rate}, the bound at step {step} is not finite")
            optimizer.zero_grad()
            (-bound).backward()
            optimizer.step()
            schedule.step()
            if step >= steps - last:
                recent.append(float(bound.detach()))
            if step % 20 == 0:
                bar.set_postfix(bound=f"{float(bound.detach()):.1f}", sigma=f"{float(generators.sigma.detach()):.3f}")
    optimizer.zero_grad()
    return sum(recent) / last


def evidence_bound(generators: ClassGenerators, x: Tensor, noise: Tensor) -> Tensor:
    """Return the evidence lower bound of images under the generators of their classes, with one draw of the latent.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators`.
        x: images [..., K, C, H, W], one for each class.
        noise: the draw, standard normal [..., K, L].

    Returns:
        [..., K], in nats, all constants included.
    """
    mean, log_variance = generators.encode(x)
    images = generators.decode(mean + noise * (log_variance / 2).exp())
    square = (x - images).flatten(-3).square().sum(-1)
    pixels = x[0].numel() // generators.classes
    likelihood = -square / (2 * generators.sigma**2) - pixels * (generators.log_sigma + math.log(2 * math.pi) / 2)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2
    return likelihood - divergence


def _members(labels: Tensor, classes: int) -> list[Tensor]:
    """Return the indices of the images of each class, on the CPU."""
    labels = labels.cpu()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels: expected classes 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    members = [(labels == label).nonzero()[:, 0] for label in range(classes)]
    for label, indices in enumerate(members):
        if not len(indices):
            raise ValueError(f"labels: expected images of every class, found none of class {label}")
    return members
