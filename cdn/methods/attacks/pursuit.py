"""The state of one attack on a batch: evaluated candidates, the best of them, and which images are fooled."""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from cdn.methods.attacks.losses import Loss
from cdn.methods.smoothing.randomized import NoisyClassifier
from cdn.model.finite import require_finite
from cdn_kernels import Noise
from cdn_kernels.reference import score

# From images [B, C, H, W] to logits [B, classes].
Classifier = Callable[[Tensor], Tensor]
# Positions between the keys of two steps: more than a decision under noise uses.
STRIDE = 1 << 20
UNTOLD = "model: expected finite logits, got infinite ones or nan: nothing can be said of its robustness"


class Pursuit:
    """Evaluate the candidates of an attack, and keep the best of each image.

    Args:
        model: a function from images [B, C, H, W] to logits [B, classes], differentiable if gradients are asked for;
            with ``noise`` a function of images and a key.
        x: images [N, C, H, W] in [0, 1].
        labels: their true classes, int64 [N].
        loss: one of :mod:`cdn.methods.attacks.losses`.
        targets: None, or the classes to reach, int64 [N].
        batch_size: images per evaluation of the model.
        stop: leave an image alone once it is fooled. The model sees only images that are not fooled yet, in full
            batches, while the search itself works on the whole batch.
        noise: None, or a key, of which the model gets another position at every step, for the places of its images.

    Attributes:
        found: which images are fooled, bool [N]: predicted to be of another class than their label, or of their target.
        best, best_loss, best_gradient: of each image the candidate of highest loss and what it gave. With ``stop``, the
            first adversarial candidate takes the place of ``best`` whatever its loss.
        last_loss: [N], of the latest candidate.
    """

    def __init__(
        self,
        model: Classifier | NoisyClassifier,
        x: Tensor,
        labels: Tensor,
        loss: Loss,
        *,
        targets: Tensor | None = None,
        batch_size: int = 256,
        stop: bool = True,
        noise: Noise | None = None,
    ) -> None:
        self.model: Callable[..., Tensor] = model
        self.labels, self.targets, self.loss = labels, targets, loss
        self.batch_size, self.stop, self.noise, self.step = batch_size, stop, noise, 0
        self.found = torch.zeros_like(labels, dtype=torch.bool)
        self.best, self.best_gradient = x.clone(), torch.zeros_like(x)
        self.best_loss = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        self.last_loss = self.best_loss.clone()

    @overload
    def __call__(self, y: Tensor, gradient: Literal[True] = True) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(self, y: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]: ...
    def __call__(self, y: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor | None]:
        """Evaluate one candidate per image.

        Args:
            y: [N, C, H, W]; what is given for images that are left alone is not looked at.
            gradient: whether to differentiate the loss.

        Returns:
            (loss [N], gradient [N, C, H, W] or None): images left alone keep their best loss, with gradient 0.

        Raises:
            NotFiniteError: logits that are not finite.
        """
        chased = (~self.found if self.stop else torch.ones_like(self.found)).nonzero()[:, 0]
        loss, gradients = self.best_loss.clone(), torch.zeros_like(y) if gradient else None
        for rows in chased.split(self.batch_size) if len(chased) else ():
            loss[rows], fooled, slope = self._evaluate(y[rows], rows, gradient)
            better = (loss[rows] > self.best_loss[rows]) | (fooled if self.stop else False)
            self.found[rows] |= fooled
            kept = rows[better]
            self.best[kept], self.best_loss[kept] = y[kept], loss[kept]
            if gradients is not None and slope is not None:
                gradients[rows], self.best_gradient[kept] = slope, slope[better]
        self.last_loss = loss.clone()
        self.step += 1
        return loss, gradients

    def _evaluate(self, y: Tensor, rows: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return losses, whether the images are fooled, and the gradient if asked for, of some rows."""
        loss: Tensor
        logits: Tensor
        slope: Tensor | None = None

        def objective(y: Tensor) -> Tensor:
            nonlocal loss, logits
            drawn = () if self.noise is None else (self.noise.moved(self.step * STRIDE).chosen(rows),)
            logits = self.model(y, *drawn)
            # Indexed in here, outside of any inference mode, whose tensors autograd does not take.
            loss = self.loss(logits, self.labels[rows], None if self.targets is None else self.targets[rows])
            return loss

        if gradient:
            slope = score(objective, y)
        else:
            with torch.no_grad():
                objective(y)
        require_finite(logits, UNTOLD)
        predicted = logits.argmax(1)
        fooled = predicted != self.labels[rows] if self.targets is None else predicted == self.targets[rows]
        return loss.detach().to(self.best_loss), fooled, slope
