"""Small variational autoencoders, one per class, all evaluated at once."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdn.errors import CheckpointError
from cdn.files import json_text, write_atomically
from cdn.model.inputs import check_counts
from cdn.noise_keys import GENERATORS
from cdn.run_folder.weights import fitting, read_safetensors

FORMAT = "cdn-generators-1"
# The standard deviation of pixels that learning it starts from.
FIRST_SIGMA = 0.2


class ClassGenerators(nn.Module):
    """One variational autoencoder per class, evaluated together: every layer is one batched matrix product.

    Class c generates images as ``x = G_c(z) + sigma eps`` from a latent ``z ~ N(0, I)``, and its encoder returns the
    mean and log-variance of a normal approximation of ``p(z | x, c)``. That, and 8 latent dimensions, follow Schott,
    Rauber, Bethge & Brendel, "Towards the first adversarially robust neural network model on MNIST" (2018, arXiv
    1805.09190). Its networks are convolutional; here they have two fully connected hidden layers, which suit small
    images and little time. One sigma for all classes is a choice too: with it, classes differ only in what they
    generate, and :func:`cdn.methods.synthesis.lower_bounds` has a closed form.

    Args:
        classes: how many, K.
        shape: (C, H, W) of the images; made for sides of 8 to 32. Costs grow with the number of pixels, and quality
            does not.
        latents: dimensions L of a latent.
        width: of the hidden layer next to the pixels; the one next to the latent is half as wide.
        sigma: standard deviation of the pixels, with white as 1; None to learn it.
        seed: of the initial weights.

    Raises:
        ValueError: a number below 1, or a sigma that is not above 0.
    """

    def __init__(
        self,
        classes: int,
        shape: Sequence[int],
        latents: int = 8,
        width: int = 256,
        sigma: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(classes=classes, latents=latents, width=width, shape=min(shape))
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(f"sigma: expected a number above 0, or None to learn it, got {sigma}")
        self.config: dict[str, Any] = dict(
            classes=classes, shape=list(shape), latents=latents, width=width, sigma=sigma, seed=seed
        )
        self.classes, self.shape, self.latents = classes, tuple(shape), latents
        generator = GENERATORS.generator(seed)
        pixels, inner = math.prod(shape), (width + 1) // 2
        layers = lambda *sizes: nn.ModuleList(
            ClassLinear(classes, *ends, generator) for ends in itertools.pairwise(sizes)
        )
        self.encoder = layers(pixels, width, inner, 2 * latents)
        self.decoder = layers(latents, inner, width, pixels)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma or FIRST_SIGMA)), requires_grad=sigma is None)

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the pixels, the same for all classes: a 0-d tensor."""
        return self.log_sigma.exp()

    def decode(self, z: Tensor) -> Tensor:
        """Return the images that latents stand for.

        Args:
            z: [..., K, L], a latent for each class.

        Returns:
            [..., K, C, H, W] in (0, 1).
        """
        images = _pass(self.decoder, z).sigmoid()
        return images.unflatten(-1, self.shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the approximate posterior of the latents of images under each class.

        Args:
            x: images [N, C, H, W] in [0, 1], which all classes see, or [N, K, C, H, W], one for each class.

        Returns:
            (mean, log-variance), each [N, K, L].
        """
        pixels = (x if x.dim() == 5 else x[:, None].expand(-1, self.classes, -1, -1, -1)).flatten(2)
        # Centred, as the first layer learns faster so.
        mean, log_variance = _pass(self.encoder, 2 * pixels - 1).chunk(2, dim=-1)
        return mean, log_variance


class ClassLinear(nn.Module):
    """A linear layer for each class, [K, M, inputs] -> [K, M, outputs], as one batched product.

    Args:
        classes: K.
        inputs, outputs: sizes.
        generator: the ``torch.Generator`` that draws the weights, of variance ``1 / inputs``.
    """

    def __init__(self, classes: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, inputs, outputs, generator=generator) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(classes, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [K, M, outputs] of inputs [K, M, inputs]."""
        return torch.baddbmm(self.bias, x, self.weight)


def save_generators(path: str | Path, generators: ClassGenerators, settings: dict[str, Any] | tuple[()] = ()) -> None:
    """Write generators as safetensors, with what it takes to build them again.

    Args:
        path: the file.
        generators: :class:`ClassGenerators`.
        settings: a dict of what JSON can hold: how they were trained, which :func:`load_generators` gives back.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generators.state_dict().items()}
    metadata = dict(format=FORMAT, config=json_text(generators.config), settings=json_text(dict(settings)))
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load_generators(path: str | Path, device: str | torch.device = "cpu") -> tuple[ClassGenerators, dict[str, Any]]:
    """Read what :func:`save_generators` wrote.

    Returns:
        (generators, settings).

    Raises:
        CheckpointError: the file is missing, torn, holds no generators, or weights of others.
    """
    tensors, metadata = read_safetensors(Path(path), "generators")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no generators of this package (no format {FORMAT!r} in its metadata)")
    with fitting(Path(path)):
        generators = ClassGenerators(**json.loads(metadata["config"]))
        generators.load_state_dict(tensors)
        return generators.to(device), json.loads(metadata["settings"])


def _pass(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """Send values [..., K, inputs] through the layers of all classes, with GELU in between: [..., K, outputs]."""
    hidden = values.reshape(-1, *values.shape[-2:]).transpose(0, 1)
    *inner, last = layers
    for layer in inner:
        hidden = F.gelu(layer(hidden))
    outputs = last(hidden).transpose(0, 1)
    return outputs.reshape(*values.shape[:-1], outputs.shape[-1])
