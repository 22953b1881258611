"""Two convolutions around a GELU as one operation, against the two that they are."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from tests.kernels.oracle import assert_as_exact_as_eager, third

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def inputs(dtype=torch.float64, layout=torch.contiguous_format):
    """Return images, filters of 3x3 to more channels, and filters of 1x1 to fewer."""
    x, first, second = torch.randn(2, 2, 4, 3), torch.randn(4, 2, 3, 3) / 4, torch.randn(3, 4, 1, 1) / 2
    return [t.to(dtype).contiguous(memory_format=layout) for t in (x, first, second)]


def pair(stride, impl="cpu"):
    return lambda *tensors: cdn_kernels.conv2d_gelu_conv2d(*tensors, stride, impl=impl)


@pytest.mark.parametrize("stride", [1, 2])
def test_numerical_checks(stride):
    tensors = [t.requires_grad_() for t in inputs()]
    assert gradcheck(pair(stride), tensors) and gradgradcheck(pair(stride), tensors)


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_numerical_checks_with_frozen_tensors(learned):
    tensors = [t.requires_grad_(n in learned) for n, t in enumerate(inputs())]
    assert gradcheck(pair(1), tensors) and gradgradcheck(pair(1), tensors)


def test_numerical_checks_of_what_its_backward_pass_is_made_of():
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g, weight, u, source = draw(2, 3, 2, 3), draw(3, 4, 3, 3), draw(2, 4, 2, 3), draw(2, 4, 2, 3)
    ops = torch.ops.cdn_kernels
    of_u = lambda function: lambda u, *rest: function(u, reference.gelu(u).detach(), *rest)
    by_input = lambda g, weight, u, source: ops.conv2d_of_gelu_input(g, weight, u, source, True, "cpu")[0]
    assert gradcheck(by_input, (g, weight, u, source)) and gradcheck(by_input, (g, weight, u, None))
    assert gradcheck(of_u(lambda u, h, weight: ops.conv2d_of_gelu(u, h, weight, "cpu")), (u, weight))
    assert gradcheck(of_u(lambda u, h, g: ops.conv2d_of_gelu_weight(u, h, g, 3, "cpu")), (u, g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_as_exact_as_eager(dtype, layout):
    assert_as_exact_as_eager(pair(2), pair(2, "reference"), inputs(dtype, layout))


def test_gradients_of_weight_gradients_reach_everything():
    """A step of learning that is differentiated: the gradient by second depends on x and first through h."""
    tensors = [t.requires_grad_() for t in inputs()]

    def after_a_step(impl):
        x, first, second = tensors
        (g,) = torch.autograd.grad(pair(1, impl)(x, first, second).square().sum(), second, create_graph=True)
        out = pair(1, impl)(x, first, second - 0.1 * g)
        return torch.autograd.grad(out.square().sum(), tensors)

    for mine, exact in zip(after_a_step("cpu"), after_a_step("reference"), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_it_equals_the_two_operations_to_the_bit():
    x, first, second = (t.requires_grad_() for t in inputs(torch.bfloat16, torch.channels_last))
    apart = cdn_kernels.conv2d(cdn_kernels.conv2d_gelu(x, first, 2, impl="cpu"), second, impl="cpu")
    together = pair(2)(x, first, second)
    with torch.no_grad():
        assert torch.equal(together, apart) and torch.equal(pair(2)(x, first, second), apart)
    for a, b in zip(
        *(torch.autograd.grad(out.float().square().sum(), (x, first, second)) for out in (together, apart)), strict=True
    ):
        assert torch.equal(a, b)


def test_autocast_rounds_all_operands():
    x, first, second = (t.requires_grad_() for t in inputs(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        out = pair(1)(x, first, second)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, pair(1)(x.bfloat16(), first.bfloat16(), second.bfloat16()))
    out.float().square().sum().backward()
    assert first.grad.dtype == second.grad.dtype == torch.float32 and float(second.grad.abs().max()) > 0


@pytest.mark.parametrize("learned, refused", [((0,), True), ((1,), True), ((2,), False), ((0, 1, 2), True)], ids=str)
def test_third_order_is_exact_or_refused(learned, refused):
    tensors = [t.requires_grad_(n in learned) for n, t in enumerate(inputs())]
    some = [tensors[n] for n in learned]
    call = lambda impl: lambda *_: pair(1, impl)(*tensors)
    if refused:
        with pytest.raises(RuntimeError, match="third derivatives have no kernel; use impl='reference'"):
            third(call("cpu"), some)
    else:
        for mine, exact in zip(third(call("cpu"), some), third(call("reference"), some), strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_transforms_run_the_reference():
    x, *filters = inputs()
    total = lambda x: cdn_kernels.conv2d_gelu_conv2d(x, *filters).square().sum()
    exact = lambda x: reference.conv2d(reference.conv2d_gelu(x, filters[0]), filters[1]).square().sum()
    torch.testing.assert_close(torch.func.hessian(total)(x[:1, :, :2, :2]), torch.func.hessian(exact)(x[:1, :, :2, :2]))
