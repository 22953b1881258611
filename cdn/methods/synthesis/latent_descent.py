"""An attack on classifiers by reconstruction: a walk towards the reconstruction of another class."""

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.methods.attacks import Adversarial
from cdn.methods.attacks.pursuit import UNTOLD
from cdn.methods.synthesis.classifier import ReconstructionClassifier
from cdn.methods.synthesis.inference import Inference
from cdn.model.finite import require_finite
from cdn.model.inputs import check_counts

HALVINGS = 10


def latent_descent(
    classifier: ReconstructionClassifier,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = 20,
    share: float = 0.1,
    progress: bool = False,
) -> Adversarial:
    """Move images towards their reconstructions in the most likely wrong class until they are taken for it.

    The latent descent attack of Schott et al. (2018, arXiv 1805.09190): at each step the likeliest wrong class
    reconstructs the image as it is now, and the image goes a share of the way there; what fools the classifier is drawn
    back to the original on a line, by bisection, as far as it still does. It needs no gradient of the classifier.
    Schott et al. start with steps of 1 % and refine the last one by a second bisection, which is left out here.

    Args:
        classifier: :class:`cdn.methods.synthesis.ReconstructionClassifier`.
        x: images [N, C, H, W] in [0, 1].
        labels: their true classes, int64 [N].
        steps: at most; each is one inference.
        share: of the way, in (0, 1].
        progress: show a progress bar on stderr.

    Returns:
        :class:`cdn.methods.attacks.Adversarial`: found bool [N], and images [N, C, H, W], adversarial where found (the
        given image itself where that is misclassified), elsewhere where the walk ended.

    Raises:
        ValueError: a share or a number of steps out of range.
        NotFiniteError: bounds that are not finite.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")
    check_counts(steps=steps)
    y, found = x.clone(), torch.zeros_like(labels, dtype=torch.bool)
    with torch.no_grad(), tqdm(range(steps + 1), unit="step", leave=False, disable=not progress) as bar:
        for step in bar:
            rows = (~found).nonzero()[:, 0]
            if not len(rows):
                break
            made = _infer(classifier, y[rows])
            found[rows] = made.bound.argmax(1) != labels[rows]
            left = ~found[rows]
            if step < steps:
                wrong = made.bound.scatter(1, labels[rows, None], -torch.inf).argmax(1)
                target = made.reconstructions[torch.arange(len(rows), device=x.device), wrong]
                y[rows[left]] = torch.lerp(y[rows[left]], target[left], share).clamp(0, 1)
        rows = found.nonzero()[:, 0]
        y[rows] = _draw_back(classifier, x[rows], y[rows], labels[rows])
    return Adversarial(found, y)


def _infer(classifier: ReconstructionClassifier, y: Tensor) -> Inference:
    made = classifier.infer(y)
    require_finite(made.bound, UNTOLD)
    return made


def _draw_back(classifier: ReconstructionClassifier, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Return of the line from x to the adversarial y the first adversarial point that bisection finds."""
    low, high = torch.zeros_like(x[:, :1, :1, :1]), torch.ones_like(x[:, :1, :1, :1])
    for _ in range(HALVINGS if len(x) else 0):
        middle = (low + high) / 2
        fooled = (_infer(classifier, torch.lerp(x, y, middle)).bound.argmax(1) != labels).view(-1, 1, 1, 1)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return torch.lerp(x, y, high)
