"""Signs of gradient masking, on models that mask and models that do not."""

import pytest
import torch

from cdn.methods.attacks import NORMS, masking_checks
from cdn.processes import ALONE
from tests.threads import together

RADIUS = dict(linf=0.006, l2=0.03)
CHECKS = [
    "no gradient is zero",
    "the loss rises with steps",
    "more restarts leave no more images",
    "gradients find at least what queries find",
    "nothing withstands an unbounded attack",
]


def checks(model, x, norm, labels=None, processes=ALONE):
    labels = model(x).argmax(1) if labels is None else labels
    verdicts = masking_checks(model, x, labels, norm, RADIUS[norm], steps=20, queries=100, processes=processes)
    assert [verdict.check for verdict in verdicts] == CHECKS
    return {verdict.check: verdict for verdict in verdicts}


@pytest.mark.parametrize("norm", NORMS)
def test_an_honest_model_passes(norm, sixths, greys):
    verdicts = checks(sixths, greys, norm)
    assert all(verdict.passed for verdict in verdicts.values()), verdicts
    left, _ = verdicts[CHECKS[2]].values
    assert 0 < left < 1


@pytest.mark.parametrize("norm", NORMS)
def test_rounded_logits_are_seen_through(norm, sixths, greys):
    """The steps of the rounding hide the gradient, not the adversarial images, which queries still find."""
    verdicts = checks(lambda y: (50 * sixths(y)).round() / 50, greys, norm)
    assert [verdicts[name].passed for name in CHECKS] == [False, False, True, False, False], verdicts
    assert verdicts[CHECKS[0]].values == [1.0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_points_elsewhere_is_seen_through(norm, sixths, greys):
    """Ripples far steeper than the model itself, and too small to matter: the gradient is theirs alone."""
    model = lambda y: sixths(y) + 1e-3 * torch.sin(1e6 * y).view(-1, 6, 4).sum(2)
    verdicts = checks(model, greys, norm)
    assert verdicts[CHECKS[0]].passed and not verdicts[CHECKS[3]].passed, verdicts


def test_processes_divide_the_images(sixths, greys):
    """Four images, of which two are left to three processes."""
    few, labels = greys[:4], sixths(greys[:4]).argmax(1)
    labels[1:3] = (labels[1:3] + 1) % 6
    alone = checks(sixths, few, "l2", labels)
    for verdicts in together(3, lambda processes: checks(sixths, few, "l2", labels, processes)):
        for name, verdict in verdicts.items():
            assert verdict.passed == alone[name].passed and verdict.values == pytest.approx(alone[name].values)


def test_images_that_are_wrong_anyway_do_not_count(sixths, greys):
    labels = sixths(greys).argmax(1)
    labels[:10] = (labels[:10] + 1) % 6
    mixed, alone = checks(sixths, greys, "l2", labels), checks(sixths, greys[10:], "l2", labels[10:])
    assert [verdict.values for verdict in mixed.values()] == [verdict.values for verdict in alone.values()]
    with pytest.raises(ValueError, match="labels: expected some images that the model classifies rightly, found none"):
        checks(sixths, greys, "l2", (sixths(greys).argmax(1) + 1) % 6)
