"""The attacks, on classifiers whose nearest adversarial images are known."""

import pytest
import torch

from cdn.methods.attacks import ATTACKS, NORMS, Ball, attack, distance
from cdn.methods.attacks.ball import diameter
from cdn.methods.attacks.gradient import apgd, checkpoints, pgd, strongest
from cdn.methods.attacks.losses import margin
from cdn.methods.attacks.pursuit import Pursuit
from cdn.methods.judges import is_right
from cdn_kernels import Noise, sample_noise

DUAL = dict(linf=1, l2=2)
NEAREST = dict(linf=0.02, l2=0.12)


def at_distance(model, x, norm):
    """Return images whose nearest adversarial image is exactly so far, and their labels.

    By the closed form the distance to a plane is the lead over the dual norm of its gradient: shift x along that.
    """
    weight = model.weight[1].detach()
    lead = (x - 0.5).flatten(1) @ weight
    wanted = lead.sign() * NEAREST[norm] * torch.linalg.vector_norm(weight, DUAL[norm])
    x = x + ((wanted - lead) / weight.square().sum())[:, None, None, None] * weight.view(1, *x.shape[1:])
    return x, model(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name, beyond", [("pgd", 1.05), ("apgd-ce", 1.01), ("apgd-dlr", 1.01)])
def test_gradients_find_the_nearest_adversarial_image(name, beyond, norm, halves, greys):
    x, labels = at_distance(halves, greys, norm)
    assert attack(halves, x, labels, Ball(norm, beyond * NEAREST[norm]), name, steps=40).found.all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_nearer_than_the_nearest(name, norm, halves, greys):
    x, labels = at_distance(halves, greys, norm)
    assert 0 < labels.sum() < 20
    assert not attack(halves, x, labels, Ball(norm, (1 - 1e-9) * NEAREST[norm]), name, steps=40).found.any()


@pytest.mark.parametrize("norm", NORMS)
def test_queries_alone_come_close(norm, halves, greys):
    x, labels = at_distance(halves, greys, norm)
    assert attack(halves, x, labels, Ball(norm, 2 * NEAREST[norm]), "random-search", steps=300).found.all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("targeted", [False, True])
def test_adversarial_images_stay_in_the_ball_and_in_the_box(name, norm, targeted, sixths):
    model, x = sixths.float(), torch.rand(50, 2, 4, 3).round(decimals=1)
    labels = model(x).argmax(1)
    radius = dict(linf=0.1, l2=0.35)[norm]
    targets = (labels + 1) % 6 if targeted else None
    found, images = attack(model, x, labels, Ball(norm, radius), name, steps=10, targets=targets)
    assert distance(norm, x, images).max() <= radius * (1 + 1e-6) + 2e-7
    assert images.min() >= 0 and images.max() <= 1
    assert 0 < found.sum() < 50
    reached = model(images).argmax(1)
    assert torch.equal(found, reached == targets if targeted else reached != labels)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_the_box_is_a_wall(name, norm):
    """Whether the mean exceeds a threshold: just within white it is reached from anywhere, beyond white never."""
    x = torch.rand(8, 1, 6, 6)
    labels = torch.zeros(8, dtype=torch.int64)

    def found(threshold):
        model = lambda y: torch.stack([0 * y.mean((1, 2, 3)), y.mean((1, 2, 3)) - threshold, y.mean((1, 2, 3)) - 9], 1)
        return attack(model, x, labels, Ball(norm, diameter(norm, x.shape[1:])), name, steps=200).found

    assert found(0.99 if name != "random-search" else 0.7).all() and not found(1.001).any()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_reached(name, norm, sixths, greys):
    labels = sixths(greys).argmax(1)
    for shift in range(1, 6):
        targets = (labels + shift) % 6
        found, images = attack(
            sixths, greys, labels, Ball(norm, dict(linf=0.4, l2=1.9)[norm]), name, steps=50, targets=targets
        )
        assert torch.equal(found, sixths(images).argmax(1) == targets)
        assert found.double().mean() >= (0.6 if name == "random-search" else 0.95)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_decides(name, sixths, greys):
    labels = sixths(greys).argmax(1)
    run = lambda **options: attack(sixths, greys, labels, Ball("l2", 0.05), name, steps=5, **options).images
    assert torch.equal(run(seed=3), run(seed=3))
    torch.testing.assert_close(run(seed=3, batch_size=7), run(seed=3))
    assert not torch.equal(run(seed=3), run(seed=4))
    assert not torch.equal(run(seed=3), run(seed=3, restart=1))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_is_attacked_alike_in_any_batch_and_any_part(name, batch_size, sixths, greys):
    labels, ball = sixths(greys).argmax(1), Ball("l2", 0.05)
    how = dict(name=name, steps=5, seed=3, restart=2)
    whole = attack(sixths, greys, labels, ball, **how)
    part = torch.tensor([17, 3, 4, 11])
    for found, chosen in (
        (attack(sixths, greys, labels, ball, batch_size=batch_size, **how), slice(None)),
        (attack(sixths, greys[8:], labels[8:], ball, batch_size=batch_size, places=8, **how), slice(8, None)),
        (attack(sixths, greys[part], labels[part], ball, batch_size=batch_size, places=part, **how), part),
    ):
        assert torch.equal(found.found, whole.found[chosen])
        torch.testing.assert_close(found.images, whole.images[chosen])
    assert whole.found.any()


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_noise_of_a_classifier_is_that_of_image_and_step(batch_size, sixths, greys):
    """Every step draws anew, and neither the size of batches nor the number of images changes what an image gets."""
    steps = {}

    def model(y, key):
        steps.setdefault(key.offset, []).append(key.places)
        return sixths(sample_noise(y, 0.05, key)[0])

    labels, ball = sixths(greys).argmax(1), Ball("l2", 0.01)
    how = dict(steps=5, seed=3)
    made = strongest(model, greys, labels, ball, batch_size=batch_size, **how)
    assert len(steps) == 6 and all(torch.cat(places).tolist() == list(range(20)) for places in steps.values())
    torch.testing.assert_close(made, strongest(model, greys, labels, ball, batch_size=256, **how))
    few = strongest(model, greys[:9], labels[:9], ball, batch_size=batch_size, **how)
    torch.testing.assert_close(few, made[:9])
    right = is_right(model, made, labels, 3, batch_size)
    assert torch.equal(right, is_right(model, made, labels, 3, 256)) and right.any()


def test_fooled_images_are_left_alone(sixths, greys):
    seen = []

    def model(y):
        seen.append(len(y))
        return sixths(y)

    wrong = (sixths(greys).argmax(1) + torch.arange(20).div(15).long().logical_not()) % 6  # the first 15 are wrong
    result = attack(model, greys, wrong, Ball("linf", 1e-9), "pgd", steps=4)
    assert torch.equal(result.found, torch.arange(20) < 15)
    assert seen == [20] + 4 * [5]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_and_parameters_are_left_as_found(mode, sixths, greys):
    with mode():
        for name in ATTACKS:
            labels = sixths(greys).argmax(1)
            assert attack(sixths, greys.clone(), labels, Ball("l2", 1.0), name, steps=20).found.any()
        assert not torch.is_grad_enabled()
    assert all(p.requires_grad and p.grad is None for p in sixths.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_automatic_steps_close_in_on_a_peak_inside_the_ball(norm):
    """A hundred times steeper in one direction than in another: steps that are too long jump over it forever."""
    x, ball = torch.full((20, 2, 4, 3), 0.5, dtype=torch.float64), Ball(norm, dict(linf=0.1, l2=0.5)[norm])
    curvature = torch.logspace(0, 2, 24, dtype=torch.float64).view(2, 4, 3) / ball.radius**2
    peak = x + 0.3 * ball.amplitude(x) * torch.randn_like(x).clamp(-2, 2)

    def below(search):
        pursuit = Pursuit(
            lambda y: torch.stack([0 * y, -curvature * (y - peak).square()], 1).sum((2, 3, 4)),
            x,
            torch.zeros(20, dtype=torch.int64),
            margin,
            stop=False,
        )
        search(pursuit, x, ball, 100, Noise(0))
        return -pursuit.best_loss

    automatic, constant = below(apgd), below(pgd)
    assert automatic.max() < 0.05 and automatic.mean() < 0.5 * constant.mean()


def test_checkpoints_of_the_paper():
    """Fractions .22, .41, .57, .70, .80, .87, .93, .99 of the steps, rounded up."""
    assert checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoints(10) == {3, 5, 6, 7, 8, 9, 10}


def test_a_model_that_gives_nan_is_not_called_robust(greys):
    labels = torch.zeros(20, dtype=torch.int64)
    with pytest.raises(ValueError, match="model: expected finite logits"):
        attack(lambda y: y.flatten(1)[:, :3] / 0 - torch.inf, greys, labels, Ball("l2", 0.1), "pgd")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name="fgsm"), "attack: expected one of pgd, apgd-ce, .*got 'fgsm'"),
        (dict(steps=0), "steps: expected at least 1, got 0"),
        (dict(x=torch.full((2, 1, 3, 3), 1.5)), r"x: expected .* images .* in \[0, 1\], got .* in \[1.5, 1.5\]"),
        (dict(x=torch.zeros(2, 1, 3, 3, dtype=torch.uint8)), "x: expected floating-point images"),
        (dict(labels=torch.zeros(3, dtype=torch.int64)), r"labels: expected one int64 class per image, \[2\], got"),
        (dict(targets=torch.zeros(2)), "targets: expected one int64 class per image"),
    ],
)
def test_refusals(change, message):
    arguments = (
        dict(model=None, x=torch.zeros(2, 1, 3, 3), labels=torch.zeros(2, dtype=torch.int64), ball=Ball("l2", 0.1))
        | change
    )
    with pytest.raises(ValueError, match=message):
        attack(**arguments)
