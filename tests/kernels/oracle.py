"""Compare a kernel with the float64 reference at every order, with tolerances derived from eager's own errors."""

import torch


def derivatives(function, inputs, seed=0):
    """Return the value of a function of tensors, its first and its second derivatives, along fixed directions.

    The first derivatives are those of ``<f, g>`` by every input, the second those of ``sum_i <df_i, t_i>`` by every
    input and by g. g and the t_i are drawn in float64 and rounded to bfloat16 values, so that all dtypes get the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def direction(like):
        values = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").bfloat16()
        # Where the input is channels last, so is the direction, as it would be inside a network.
        return torch.empty_like(like).copy_(values)

    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    value = function(*inputs)
    g = direction(value.detach()).requires_grad_()
    first = torch.autograd.grad(value, inputs, g, create_graph=True)
    tangents = [direction(d.detach()) for d in first]
    second = torch.autograd.grad(first, [*inputs, g], tangents, allow_unused=True)
    second = [torch.zeros_like(i) if d is None else d for i, d in zip([*inputs, g], second)]
    return [d.detach() for d in (value, *first, *second)]


def tensors(shapes, dtype=torch.float64):
    """Return tensors of random numbers that require gradients, of the shapes that are not None."""
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes if shape is not None]


def third(function, inputs):
    """Return gradients of a number that depends on first and second derivatives."""
    value = function(*inputs).tanh().sum()
    for _ in range(2):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum(g.sin().sum() for g in grads)
    return torch.autograd.grad(value, inputs)


def spelled_norm(x, dims, weight=None, bias=None, eps=1e-5):
    """Normalize over dimensions as the definition has it, with a gain and a bias that broadcast."""
    centred = x - x.mean(dims, keepdim=True)
    z = centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    return (z if weight is None else z * weight) + (0 if bias is None else bias)


def in_layouts(x):
    """Return a tensor, and the same in channels last where it holds images."""
    return (x, x.to(memory_format=torch.channels_last)) if x.dim() == 4 else (x,)


def assert_as_exact_as_eager(kernel, eager, inputs, ulps=1, constants=0.0):
    """Assert error <= 2 (error of eager + eps max|ref|) for the value and all first and second derivatives.

    Gradients of a gain or a filter sum many terms, whose roundings grow with the square root of their number.

    Args:
        kernel, eager: functions of the inputs.
        inputs: tensors of one dtype and any layout.
        ulps: units in the last place by which the operation's constants, such as noise, may differ between backends.
        constants: relative error of the operation's polynomials, which show in results of more digits than its inputs.
    """
    truth = derivatives(eager, [i.double() for i in inputs])
    mine, theirs = derivatives(kernel, inputs), derivatives(eager, inputs)
    for order, (exact, own, other) in enumerate(zip(truth, mine, theirs, strict=True)):
        assert own.shape == other.shape and own.dtype == other.dtype
        eps = torch.finfo(own.dtype).eps
        terms = max(1.0, truth[0].numel() / max(exact.numel(), 1))
        scale = terms**0.5 * float(exact.abs().max()) if exact.numel() else 0.0
        error = float((own.double() - exact).abs().max()) if exact.numel() else 0.0
        allowed = float((other.double() - exact).abs().max()) if exact.numel() else 0.0
        # For float64 eager is the truth itself, and its own error unknown: some ten roundings deep on either side.
        bound = 50 * eps * scale if own.dtype == torch.float64 else 2 * (allowed + max(ulps * eps, constants) * scale)
        assert error <= bound, (order, error, allowed, eps * scale)


def assert_rounded_once(out, truth, absolute, more=0.0):
    """Assert an error of one rounding, and of sums in float32 of terms whose absolute values sum to absolute.

    Sums of n terms of either sign err by about sqrt(n) roundings of 2^-24, at most n.
    """
    sums = 2.0**-46 if out.dtype == torch.float64 else 2.0**-18
    assert ((out.double() - truth).abs() <= torch.finfo(out.dtype).eps * truth.abs() + sums * (absolute + more)).all()


def assert_captured(work):
    """Check that a CUDA graph of some work gives its tensors, which it could not if anything waited for the device."""
    expected = work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
