"""The softmax over rows and its second order in one pass: against float64, to every order, on hard rows."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from cdn_kernels.backends.interface import TYPES
from tests.kernels.oracle import assert_as_exact_as_eager
from tests.kernels.passes import Buffers

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

dtypes = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])
capabilities = pytest.mark.parametrize("capability", cpu.USABLE)
# Rows of one, of no whole vector, of whole packs, of some packs and a rest, and longer than one sum may be.
SHAPES = [(3, 1), (5, 7), (2, 3, 64), (4, 197), (2, 1, 1, 5000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def own(x):
    return cdn_kernels.softmax(x, impl="cpu")


def operands(shape, dtype, scale=2.0):
    """Return the softmax of a row, a gradient by it, and a tangent."""
    torch.manual_seed(0)
    p = (scale * torch.randn(shape, dtype=torch.float64)).softmax(-1)
    return p.to(dtype), torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


def exact(p, g, t):
    """Return both results in float64, and the sums of the absolute values of their terms."""
    p, g, t = (x.double() for x in (p, g, t))

    def results(p, g, t, sign):
        of_g, of_t = ((p * x).sum(-1, keepdim=True) for x in (g, t))
        return p * (t - sign * of_t), g * t - sign * g * of_t - sign * t * of_g

    return results(p, g, t, 1), results(p, g.abs(), t.abs(), -1)


@shapes
@dtypes
@capabilities
def test_the_second_order_is_exact(shape, dtype, capability):
    given = operands(shape, dtype)
    for threads in (1, 2, 3):
        buffers = Buffers(False, float("nan"))
        by_p, by_grad = buffers.new(shape, dtype), buffers.new(shape, dtype)
        cpu.softmax_tangent(*given, by_p, by_grad, threads=threads, capability=capability)
        results, intact = buffers.results()
        assert intact
        if threads == 1:
            first = [r.clone() for r in results]
        assert all(map(torch.equal, results, first))
    computed, smallest = torch.finfo(reference.compute_dtype(dtype)).eps, torch.finfo(dtype).smallest_normal
    for found, truth, terms in zip((by_grad, by_p), *exact(*given), strict=True):
        error = (found.double() - truth).abs()
        assert (error <= torch.finfo(dtype).eps * (truth.abs() + smallest) + 4 * computed * terms).all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 1)], ids=str)
def test_gradients_of_two_orders(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(own, x) and gradgradcheck(own, x)
    p, g = own(x).detach().requires_grad_(), torch.randn_like(x).requires_grad_()
    backward = lambda p, g: torch.ops.cdn_kernels.softmax_backward(p, g, "cpu")
    assert gradcheck(backward, (p, g)) and gradgradcheck(backward, (p, g))
    t = torch.randn_like(x).requires_grad_()
    tangent = lambda *given: torch.ops.cdn_kernels.softmax_tangent(*given, "cpu")
    assert gradcheck(tangent, (p, g, t)) and gradgradcheck(tangent, (p, g, t))


@dtypes
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_all_orders_are_as_exact_as_eager(dtype, scale):
    x = (scale * torch.randn(4, 9, 33)).to(dtype)
    assert_as_exact_as_eager(own, reference.softmax, [x])


def test_hard_rows():
    masked, alone = torch.randn(3, 5), torch.randn(3, 5)
    masked[:, 2:] = -torch.inf
    alone[1] = float("nan")
    for x in (masked, alone, torch.full((2, 4), 1e30), torch.zeros(2, 4), torch.full((2, 3), -torch.inf)):
        both = []
        for function in (own, reference.softmax):
            y = x.clone().requires_grad_()
            p = function(y)
            (g,) = torch.autograd.grad(p.square().sum(), y, create_graph=True)
            both.append((p, g, *torch.autograd.grad(g.square().sum(), y)))
        for mine, eager in zip(*both, strict=True):
            torch.testing.assert_close(mine, eager, equal_nan=True)


def test_empty_rows_and_strided_ones():
    for shape in ((0, 3), (2, 0), (0, 0)):
        x = torch.randn(shape, requires_grad=True)
        (g,) = torch.autograd.grad(own(x).sum(), x, create_graph=True)
        assert torch.autograd.grad(g.sum(), x)[0].shape == shape
    x = torch.randn(5, 4, dtype=torch.float64).mT.requires_grad_()
    assert own(x).is_contiguous() and gradgradcheck(own, x)


@pytest.mark.parametrize(
    "x, error, message",
    [
        ([1.0], TypeError, "x must be a tensor, got list"),
        (torch.ones(2, dtype=torch.long), TypeError, "x must be float32, .* got torch.int64"),
        (torch.tensor(1.0), ValueError, "x must have a dimension, got a 0-d tensor"),
    ],
)
def test_bad_input_gets_one_sentence(x, error, message):
    with pytest.raises(error, match=message):
        cdn_kernels.softmax(x)
