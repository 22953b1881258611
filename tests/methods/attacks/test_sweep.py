"""Curves of robust accuracy."""

import pytest
import torch

from cdn.methods.attacks import NORMS, distance, sweep
from tests.threads import together


@pytest.mark.parametrize(
    "norm, dual, radii", [("linf", 1, [0.002, 0.004, 0.008, 0.016, 0.032]), ("l2", 2, [0.01, 0.02, 0.04, 0.08, 0.16])]
)
def test_every_image_breaks_at_the_first_radius_beyond_its_distance(norm, dual, radii, halves, greys):
    labels = halves(greys).argmax(1)
    labels[:3] = 1 - labels[:3]
    lead = halves(greys)[:, 1].detach().abs() / torch.linalg.vector_norm(halves.weight[1].detach(), dual)
    grid = torch.tensor(radii, dtype=torch.float64)
    expected = torch.where(lead[:, None] < grid, grid, torch.inf).amin(1)
    expected[:3] = 0
    result = sweep(halves, greys, labels, norm, radii[::-1], ["pgd", "apgd-dlr"], steps=40)
    # Where a radius is within 1 % of the distance, even a good attack may miss.
    clear = ((lead[:, None] / grid - 1).abs() > 0.01).all(1)
    assert torch.equal(result.broken_at[clear], expected[clear]) and clear.sum() > 10
    assert result.radii == radii and result.clean_accuracy == 0.85
    assert result.robust_accuracy == [float((result.broken_at > radius).double().mean()) for radius in radii]
    broken = result.broken_at.isfinite()
    assert (distance(norm, greys, result.images)[broken] <= result.broken_at[broken] * (1 + 1e-12)).all()
    assert torch.equal(halves(result.images).argmax(1) != labels, broken)


@pytest.mark.parametrize("norm", NORMS)
def test_curves_never_rise_and_more_effort_never_helps_the_model(norm, sixths, greys):
    labels = sixths(greys).argmax(1)
    radii = [r * dict(linf=0.02, l2=0.1)[norm] for r in (1, 2, 3)]
    run = lambda **options: sweep(sixths, greys, labels, norm, radii, **options).robust_accuracy
    weak = run(names=["random-search"], steps=5)
    assert weak == sorted(weak, reverse=True) and weak[0] > weak[-1]
    more = run(names=["random-search"], steps=5, restarts=4)
    both = run(names=["random-search", "apgd-ce"], steps=5, restarts=4)
    assert all(a >= b >= c for a, b, c in zip(weak, more, both)) and weak != more != both


@pytest.mark.parametrize("norm, dual, radii", [("linf", 1, [0.004, 0.008, 0.012]), ("l2", 2, [0.02, 0.03, 0.04])])
def test_six_classes_break_at_the_nearest_of_their_planes(norm, dual, radii, sixths, greys):
    """Only here do attacks have a choice of classes; the DLR loss makes the right one, or is given each in turn."""
    logits, weight = sixths(greys).detach(), sixths.weight.detach()
    labels = logits.argmax(1)
    lead = logits.gather(1, labels[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[labels][:, None] - weight, dual, dim=2)
    nearest = torch.where(slope > 0, lead / slope, torch.inf).amin(1)
    exact = [float((nearest > radius).double().mean()) for radius in radii]
    assert exact[0] > exact[-1]
    run = lambda **options: sweep(sixths, greys, labels, norm, radii, ["apgd-dlr"], **options).robust_accuracy
    assert run(targeted=5) == exact
    free, one = run(), run(targeted=1)
    assert free == pytest.approx(exact, abs=0.051) and all(a >= b for a, b in zip(one, exact))


@pytest.mark.parametrize("count", [2, 3, 25])
def test_processes_divide_the_images(count, sixths, greys):
    """Also where there are more processes than images."""
    labels = sixths(greys).argmax(1)
    labels[:4] = (labels[:4] + 1) % 6
    how = dict(names=["apgd-ce", "random-search"], steps=5, restarts=2, targeted=2, seed=1)
    alone = sweep(sixths, greys, labels, "l2", [0.02, 0.04], **how)
    for found in together(count, lambda p: sweep(sixths, greys, labels, "l2", [0.02, 0.04], processes=p, **how)):
        assert torch.equal(found.broken_at, alone.broken_at) and found.radii == alone.radii
        torch.testing.assert_close(found.images, alone.images)
    assert {0, 0.02, 0.04, torch.inf} == set(alone.broken_at.tolist())


def test_only_the_right_ones_are_attacked(sixths, greys):
    labels = (sixths(greys).argmax(1) + 1) % 6
    result = sweep(sixths, greys, labels, "linf", [0.1])
    assert result.clean_accuracy == 0 and result.robust_accuracy == [0.0] and torch.equal(result.images, greys)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(radii=[0.1, -0.2]), r"radii: expected numbers above 0, got \[-0.2, 0.1\]"),
        (dict(radii=[]), r"radii: expected numbers above 0, got \[\]"),
        (dict(names=["pgd", "cw"]), "attack: expected one of .*got 'cw'"),
        (dict(norm="l0"), "norm: expected one of linf, l2, got 'l0'"),
        (dict(restarts=0), "restarts: expected at least 1, got 0"),
        (dict(targeted=6), "targeted: expected 0 to 5 of the wrong classes, got 6"),
    ],
)
def test_refusals_of_a_sweep(change, message, sixths, greys):
    with pytest.raises(ValueError, match=message):
        sweep(**(dict(model=sixths, x=greys, labels=sixths(greys).argmax(1), norm="l2", radii=[0.1]) | change))
