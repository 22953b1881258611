"""Cross-entropy of differences of logits: PyTorch's in float64, and its digits in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import cdn
from cdn_kernels import cross_entropy

OPTIONS = [
    dict(),
    dict(reduction="sum"),
    dict(reduction="none"),
    dict(label_smoothing=0.2),
    dict(label_smoothing=1.0, reduction="none"),
]


def problem(samples=6, classes=5, dtype=torch.float64):
    return 3 * torch.randn(samples, classes, dtype=dtype), torch.randint(classes, (samples,))


def by_hand(logits, labels, label_smoothing=0.0, reduction="none"):
    leads = logits - logits.gather(1, labels[:, None])
    wrong = leads[F.one_hot(labels, logits.shape[1]) == 0].view(len(logits), -1)
    loss = wrong.exp().sum(1).log1p() - label_smoothing * leads.mean(1)
    return loss if reduction == "none" else loss.sum()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_it_is_pytorchs_with_its_derivatives(classes, options):
    logits, labels = problem(classes=classes)
    logits.requires_grad_()
    torch.testing.assert_close(cross_entropy(logits, labels, **options), F.cross_entropy(logits, labels, **options))
    call = lambda logits: cross_entropy(logits, labels, **options)
    assert gradcheck(call, logits) and gradgradcheck(call, logits)


@pytest.mark.parametrize("offset", [0.0, 2.0**14, -(2.0**14)])
@pytest.mark.parametrize("lead", [-60.0, -3.0, 0.0, 10.0, 25.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_single_precision_keeps_every_digit(offset, lead, smoothing):
    """Logits that are multiples of 1/512 are exact beside any of these offsets: all error is that of the loss."""
    logits = (torch.randint(-1024, 1024, (32, 7)) / 512).float() + offset
    labels = torch.randint(7, (32,))
    logits = logits.scatter_add(1, labels[:, None], torch.full((32, 1), lead)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    options = dict(label_smoothing=smoothing, reduction="none")
    loss, wanted = cross_entropy(logits, labels, **options), by_hand(exact, labels, **options)
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-6, atol=0)
    (first,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (wanted,) = torch.autograd.grad(wanted.sum(), exact, create_graph=True)
    # A weight e / C may cancel that of softmax; where nothing can cancel, every weight is right to its last digits.
    torch.testing.assert_close(first.double(), wanted, rtol=3e-6, atol=3e-8 * smoothing)
    assert (first.sum(1).abs() <= 3e-7 * first.abs().amax(1)).all()
    v = torch.randn(32, 7)
    (second,) = torch.autograd.grad(first, logits, v)
    (wanted,) = torch.autograd.grad(wanted, exact, v.double())
    assert ((second - wanted).norm(dim=1) <= 1e-5 * wanted.norm(dim=1)).all()


def test_float64_keeps_its_digits_where_the_model_is_wrong():
    logits = torch.tensor([[0.0, 25.0, 3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0])
    found, wanted = (
        (loss, *torch.autograd.grad(loss, logits))
        for loss in (cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-16)


def test_gaps_and_classes_that_no_exponential_can_hold():
    logits = torch.tensor([[0.0, 3e4, -3e4], [3e4, 0.0, -3e4], [0.0, -torch.inf, -torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 0, 0]), reduction="none")
    assert loss.tolist() == [3e4, 0, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    assert gradient.tolist() == [[-1, 1, 0], [0, 0, 0], [0, 0, 0]]
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert not second.any()
    assert cross_entropy(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1])).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits, labels = problem(dtype=torch.float32)
    half = (30 * logits).to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    loss, wanted = cross_entropy(half, labels), cross_entropy(single, labels)
    assert loss.dtype == torch.float32 and torch.equal(loss, wanted)
    loss.backward(), wanted.backward()
    assert torch.equal(half.grad, single.grad.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cross_entropy(half, labels), wanted)


def test_it_goes_through_transforms():
    logits, labels = problem()
    gradient = torch.func.grad(lambda row, label: cross_entropy(row[None], label[None]))
    p = logits.softmax(1)
    torch.testing.assert_close(torch.vmap(gradient)(logits, labels), p - F.one_hot(labels, 5))
    hessian = torch.vmap(torch.func.jacrev(gradient))(logits, labels)
    torch.testing.assert_close(hessian, torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def test_it_compiles_without_a_break():
    logits, labels = problem()
    logits.requires_grad_()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    for loss in (compiled(logits, labels), cross_entropy(logits, labels)):
        loss.backward()
    torch.testing.assert_close(logits.grad / 2, (logits.softmax(1) - F.one_hot(labels, 5)).detach() / 6)


def test_the_gradient_of_an_image_that_a_density_is_sure_of():
    """The gradient of the logits' common offset is up to a million times that of their differences."""
    model = cdn.gradresnet_small(4, 1, width=8)
    with torch.no_grad():
        model.head.classes.weight.mul_(12 / model(torch.rand(1, 1, 8, 8)).std())
        y = torch.rand(8, 1, 8, 8)
        labels = model(y).argmax(1)

    def gradient(dtype, loss):
        image = y.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(loss(model.to(dtype)(image), labels, reduction="sum"), image)
        return found.double().flatten(1)

    exact = gradient(torch.float64, by_hand)
    error = lambda found: float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max())
    assert error(gradient(torch.float64, cross_entropy)) < 1e-12
    assert error(gradient(torch.float32, cross_entropy)) < 1e-4 < 0.01 < error(gradient(torch.float32, F.cross_entropy))


@pytest.mark.parametrize(
    "labels, options, sentence",
    [
        (torch.tensor([0]), {}, r"labels must be one class per row, \[6\], got \[1\]"),
        (torch.zeros(6, 5), {}, r"\[6\], got \[6, 5\]"),
        (torch.zeros(6, dtype=torch.int64), dict(reduction="max"), "reduction must be mean, sum or none, got 'max'"),
    ],
)
def test_bad_input_gets_a_sentence(labels, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(problem()[0], labels, **options)
