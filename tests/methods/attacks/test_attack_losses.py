"""The losses that attacks climb."""

import pytest
import torch
import torch.nn.functional as F

from cdn.methods.attacks.losses import cross_entropy, difference_of_logits_ratio, margin

LABELS, TARGETS = torch.tensor([0, 3, 2, 5]), torch.tensor([1, 0, 4, 2])


def logits():
    return 3 * torch.randn(4, 6, dtype=torch.float64)


def test_cross_entropy_is_that_of_the_textbook():
    z = logits()
    torch.testing.assert_close(cross_entropy(z, LABELS), F.cross_entropy(z, LABELS, reduction="none"))
    torch.testing.assert_close(cross_entropy(z, LABELS, TARGETS), -F.cross_entropy(z, TARGETS, reduction="none"))


def test_cross_entropy_of_the_sure_keeps_its_digits():
    """Single precision, a lead of 20 nats: the textbook's gradient is zero, or sums to far more than it is."""
    z = torch.tensor([[20.0, 0.0, -1.5, 1.25]], requires_grad=True)
    exact = z.detach().double().requires_grad_()
    F.cross_entropy(exact, torch.tensor([0])).backward()
    cross_entropy(z, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-6, atol=0)
    assert abs(float(z.grad.sum())) <= 1e-6 * float(z.grad.abs().max())


def test_margin_is_positive_where_the_model_is_wrong():
    z = logits().repeat(50, 1) + torch.randn(200, 6)
    labels, targets = LABELS.repeat(50), TARGETS.repeat(50)
    assert torch.equal(margin(z, labels) > 0, z.argmax(1) != labels)
    assert torch.equal(margin(z, labels, targets) > 0, z.argmax(1) == targets)
    assert 0 < (margin(z, labels, targets) > 0).sum() < 200


def test_dlr_by_hand():
    z = torch.tensor([[5.0, 1.0, 3.0, 2.0, 0.0]])
    assert float(difference_of_logits_ratio(z, torch.tensor([0]))) == pytest.approx(-2 / 3)
    assert float(difference_of_logits_ratio(z, torch.tensor([3]))) == pytest.approx(3 / 3)
    assert float(difference_of_logits_ratio(z, torch.tensor([0]), torch.tensor([4]))) == pytest.approx(-5 / 3.5)


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_dlr_forgets_shift_and_scale(targets):
    z = logits()
    changed = 0.01 * z + torch.tensor([[1e3], [-50.0], [0.0], [7.0]])
    torch.testing.assert_close(
        difference_of_logits_ratio(changed, LABELS, targets), difference_of_logits_ratio(z, LABELS, targets)
    )
    assert not torch.allclose(
        difference_of_logits_ratio(-z, LABELS, targets), difference_of_logits_ratio(z, LABELS, targets)
    )


def test_dlr_needs_classes_to_compare():
    z = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    assert difference_of_logits_ratio(z, labels).shape == (4,)
    with pytest.raises(ValueError, match="compares 4 logits of a targeted attack, got a model of 3 classes"):
        difference_of_logits_ratio(z, labels, labels)
    with pytest.raises(ValueError, match="compares 3 logits, got a model of 2 classes"):
        difference_of_logits_ratio(z[:, :2], labels.clamp(max=1))
    assert float(difference_of_logits_ratio(torch.ones(1, 3), labels[:1])) == 0
