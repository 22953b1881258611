"""A trained model as a denoiser of other libraries: a module called as ``D(x, sigma)``."""

from typing import Any

import torch
from torch import Tensor, nn

from cdn.density import denoise


class Denoiser(nn.Module):
    """Denoise as ``forward(x, sigma)``, the call that plug-and-play libraries expect (deepinv's ``Denoiser`` protocol).

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`.
        label: None, one class or one per image: the class-conditional denoiser.

    Limitations: the score of the model is blind, it goes by the noise that it sees in x. On images with much less noise
    than sigma says, ``x + sigma^2 score`` goes too far: give it images that do carry noise of deviation sigma.
    """

    def __init__(self, model: nn.Module, label: int | Tensor | None = None) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor, sigma: float | Tensor, **options: Any) -> Tensor:
        """Return ``D(x)``, the shape of x, as :func:`cdn.denoise` does.

        Args:
            x: noisy images [B, C, H, W], by the name that the protocol gives them.
            sigma: their noise level: a number, or a tensor with one value or one per image, of any dimensions.
            options: what else a library hands to all of its denoisers; without effect.

        The graph is kept where grad mode is on, as by any module.
        """
        if isinstance(sigma, Tensor):
            sigma = sigma.reshape(-1) if sigma.numel() > 1 else sigma.reshape(())
        return denoise(self.model, x, sigma, self.label, create_graph=torch.is_grad_enabled())
