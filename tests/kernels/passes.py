"""What the tests of GELU, SiLU and the norms share, whatever the backend: inputs, and checks at every order."""

import math

import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu, interface
from cdn_kernels.floors import square_floor
from tests.kernels.oracle import assert_as_exact_as_eager, derivatives

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (B, C, H, W), groups: a pixel, a row, sizes that fill no vector, one channel per group, one group, many channels.
SHAPES = [
    ((2, 4, 1, 1), 2),
    ((1, 6, 1, 7), 3),
    ((3, 12, 5, 3), 2),
    ((2, 5, 4, 4), 5),
    ((2, 24, 8, 8), 1),
    ((1, 200, 3, 3), 25),
    ((2, 8, 33, 17), 4),
]
# Rows, as layers of transformers normalize them.
ROWS = [((rows, width, 1, 1), 1) for rows, width in ((1, 7), (3, 2), (5, 16), (70, 33), (2, 200), (129, 3))]
HARD = {
    "large mean, small variance": lambda x: 30 + 0.01 * x,
    "a constant group": lambda x: torch.cat([torch.full_like(x[:, :2], 0.7), x[:, 2:]], 1),
    "in the tail": lambda x: x - 4,
    "tiny": lambda x: 1e-5 * x,
    "one far outlier": lambda x: x.index_fill(3, torch.tensor([0]), 50.0),
}
MARGIN = 64


def norm(impl, groups, keep, eps=0.1, residual=True):
    if residual:
        return lambda x, r, gain: cdn_kernels.gelu_group_norm(
            x, gain, groups, residual=r, eps=eps, scale_preserving=keep, impl=impl
        )
    return lambda x, gain: cdn_kernels.gelu_group_norm(x, gain, groups, eps=eps, scale_preserving=keep, impl=impl)


def norm_inputs(shape, dtype, layout=torch.contiguous_format):
    """Return (x, residual, gain)."""
    x, r = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    return x, r, (torch.rand(shape[1]) + 0.5).to(reference.compute_dtype(dtype))


def plain_norm_inputs(shape, dtype, layout=torch.contiguous_format):
    """Return (x, gain, bias)."""
    gain, bias = torch.rand(2, shape[1], dtype=reference.compute_dtype(dtype))
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout), gain + 0.5, bias


def assert_activation_passes_numerical_checks(impl, shape=(4, 5), name="gelu"):
    u = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    phi = lambda u: getattr(cdn_kernels, name)(u, impl=impl)
    assert gradcheck(phi, u) and gradgradcheck(phi, u)


def assert_activation_is_as_exact_as_eager(impl, dtype, scale, constants=0.0, name="gelu"):
    """Compare GELU or SiLU of tensors of several layouts and sizes; constants as in assert_as_exact_as_eager."""
    kernel, eager = (getattr(module, name) for module in (cdn_kernels, reference))
    u = (scale * torch.randn(3, 7, 5, 9)).to(dtype)
    for inputs in (u, u.to(memory_format=torch.channels_last), u[0, 0, 0], u[:0], u[..., ::2], u[:2, :4, :4, :8]):
        assert_as_exact_as_eager(lambda u: kernel(u, impl=impl), eager, [inputs], constants=constants)


def exact_gelu(x):
    """Return GELU and its derivatives in float64, each with the terms that it is a difference of."""
    phi = lambda x: torch.erfc(x / -math.sqrt(2)) / 2  # torch.special.ndtr has no digits in the tail
    near, a = x.clamp(-50, 50), x.abs().clamp(max=50)  # at infinity, the limits
    pdf = torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return (
        (x.clamp(min=-50) * phi(x), a * phi(-a)),
        (phi(near) + near * pdf, phi(-a) + a * pdf),
        (pdf * (2 - a * a), pdf * (2 + a * a)),
    )


def exact_silu(x):
    """Return the same of SiLU, which is NaN where torch's is: at infinity, but for the value at plus infinity."""
    s, product = x.sigmoid(), x.sigmoid() * (-x).sigmoid()
    terms = s + x.abs() * product
    return (x * s, (x * s).abs()), (s + x * product, terms), (product * (2 + x * (1 - 2 * s)), 3 * terms)


def exact_elu(x):
    """Return the same of ELU, whose values near 0 are differences of nothing."""
    e, falls = x.clamp(max=0).exp(), x < 0
    # A NaN is no number on either side.
    first, second = torch.where(falls, e, 1.0), torch.where(falls, e, 0.0)
    return tuple((t.where(~x.isnan(), x), t.abs()) for t in (torch.where(falls, x.expm1(), x), first, second))


def assert_activation_of_every_16_bit_number_is_within(kernel, exact, dtype, relative):
    """Compare a function and its derivatives of every number of a dtype with float64.

    Args:
        kernel: the pass of a backend, as cpu.gelu.
        exact: one of the functions above.
        relative: error of the terms that the results are differences of, beside their rounding.
    """
    u = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    value, first, second, ones = (torch.ones_like(u) for _ in range(4))
    kernel(interface.FORWARD, u, None, None, value, None)
    kernel(interface.TANGENT, u, ones, ones, second, first)
    rounding, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    for result, (wanted, terms) in zip((value, first, second), exact(u.double()), strict=True):
        bound = rounding * (wanted.abs() + tiny) + relative * terms + 1e-34
        assert ((result.double() - wanted).abs() <= bound)[wanted.isfinite()].all()
        assert torch.equal(result[wanted.isinf()].double(), wanted[wanted.isinf()])
        assert torch.equal(result.isnan(), wanted.isnan())


def assert_norm_is_as_exact_as_eager(impl, groups, keep, inputs, eps=0.1, constants=0.0):
    """Compare the norm of (x, residual, gain), or of (x, gain)."""
    residual = len(inputs) == 3
    functions = (norm(name, groups, keep, eps, residual) for name in (impl, "reference"))
    assert_as_exact_as_eager(*functions, inputs, constants=constants)


def assert_norm_survives(make, impl, keep, dtype, layout=torch.channels_last, channels=6, constants=0.0):
    """Compare the norm of one of HARD."""
    x, _, gain = norm_inputs((2, channels, 4, 5), torch.float64, layout)
    inputs = make(x).to(dtype).contiguous(memory_format=layout), gain.to(reference.compute_dtype(dtype))
    assert_norm_is_as_exact_as_eager(impl, 3, keep, inputs, 1e-3, constants)


def assert_samples_of_constant_groups_are_dead(impl, layout, dtype=torch.float32, channels=4):
    x = torch.full((2, channels, 3, 3), 0.3, dtype=dtype).contiguous(memory_format=layout)
    for result in derivatives(norm(impl, 2, True, residual=False), (x, torch.ones(channels))):
        assert torch.equal(result, torch.zeros_like(result))


def amplitudes(dtype, step=1.0):
    """Return amplitudes from 1 down to where nothing is left in a dtype, step decades apart."""
    lowest = 323 if dtype == torch.float64 else 45
    return [10.0 ** -(k * step) for k in range(int(lowest / step) + 1)]


def assert_norm_is_blank_at_the_floor_and_finite_everywhere(
    impl, dtype, layout=torch.channels_last, channels=4, step=1.0, eps=1e-3
):
    """Check the norm and its derivatives of samples of every amplitude, one after another in a batch.

    At its floor or below a sample gives 0 and so do its derivatives, above it they are those of the reference.
    """

    def common(x):  # the mean variance of two groups, [B]
        b = reference.gelu(x.to(reference.compute_dtype(dtype))).double().unflatten(1, (2, -1))
        return (b - b.mean((2, 3, 4), keepdim=True)).square().mean((1, 2, 3, 4))

    sample = torch.randn((1, channels, 3, 3), dtype=torch.float64)
    sample[:, : channels // 2] *= 0.1  # groups of different variance
    floor = square_floor(dtype)
    at_floor = (floor / float(common(1e-5 * sample) * 1e10)) ** 0.5
    x = torch.cat([a * sample for a in (*amplitudes(dtype, step), 0.99 * at_floor, 1.01 * at_floor)])
    x = x.to(dtype).contiguous(memory_format=layout)
    blank, alive = common(x) < 0.99 * floor, common(x) > 1.01 * floor
    assert (blank | alive).all() and blank.any() and alive.any()
    inputs = x, torch.ones(channels, dtype=reference.compute_dtype(dtype))
    for of_kernel, of_reference in zip(
        *(derivatives(norm(name, 2, True, eps, residual=False), inputs) for name in (impl, "reference")), strict=True
    ):
        assert of_kernel.isfinite().all()
        if of_kernel.dim() == 4:
            assert not of_kernel[blank].any()
            largest = of_reference[alive].abs().amax((1, 2, 3), keepdim=True)
            error = ((of_kernel - of_reference)[alive] / largest).abs().amax()
            assert largest.all() and error <= torch.finfo(dtype).eps ** 0.5  # how exact they are is for other tests


def assert_non_finite_samples_stay_alone(impl, layout=torch.contiguous_format):
    x, _, gain = norm_inputs((3, 8, 4, 4), torch.float32, layout)
    clean = derivatives(norm(impl, 2, True, residual=False), (x, gain))
    x[1, 0, 0, 0] = float("nan")
    for before, after in zip(clean, derivatives(norm(impl, 2, True, residual=False), (x, gain))):
        if before.dim() == 4:
            assert torch.equal(before[::2], after[::2]) and after[1].isnan().any()


class Buffers:
    """Tensors to be written by a kernel, full of a number, with a margin on either side that it must leave alone.

    Args:
        last: whether images are channels last.
        fill: the number.
    """

    def __init__(self, last, fill):
        self.last, self.fill, self.flat = last, fill, []

    def new(self, shape, dtype):
        flat = torch.full((torch.Size(shape).numel() + 2 * MARGIN,), self.fill, dtype=dtype)
        self.flat.append(flat)
        body = flat[MARGIN:-MARGIN]
        if self.last and len(shape) == 4:
            return body.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        return body.view(shape)

    def results(self):
        """Return what is between the margins, and whether these are still nan."""
        intact = all(bool((b[:MARGIN].isnan() & b[-MARGIN:].isnan()).all()) for b in self.flat)
        return [b[MARGIN:-MARGIN] for b in self.flat], intact


def sweep_inputs(count, shape, dtype, last):
    """Return as many images, and two numbers for each channel."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    images = [torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(count)]
    return *images, torch.rand(2, shape[1], dtype=reference.compute_dtype(dtype)) + 0.5


def run_all_sweeps(shape, groups, last, dtype=torch.float32, fill=float("nan"), backend=cpu, **options):
    """Run the three sweeps of the norm after GELU into buffers; return (buffers, margins intact)."""
    x, r, g, t, (gain, _) = sweep_inputs(4, shape, dtype, last)
    buffers = Buffers(last, fill)
    v, z, g_v, zdot, source = (buffers.new(shape, dtype) for _ in range(5))
    statistics = buffers.new((shape[0], 4 * groups + 1), gain.dtype)
    shares, more = (buffers.new(shape[:2], gain.dtype) for _ in range(2))

    def run(sweep, x, **tensors):
        backend.gelu_norm(sweep, x, gain, groups, 0.1, True, last, statistics=statistics, **tensors, **options)

    run(interface.FORWARD, x, out=z, residual=r, sum=v)
    run(interface.BACKWARD, v, out=g_v, grad=g, gain_grad=shares)
    run(interface.TANGENT, v, out=source, grad=g, tangent=t, tangent_out=zdot, gain_grad=more)
    return buffers.results()


def run_all_plain_sweeps(shape, groups, last, dtype=torch.float32, fill=float("nan"), **options):
    """Run those of group normalization, or without groups of batch normalization, likewise."""
    x, g, t, (gain, bias) = sweep_inputs(3, shape, dtype, last)
    buffers = Buffers(last, fill)
    z, g_x, zdot, source = (buffers.new(shape, dtype) for _ in range(4))
    rows, scalars = (1, 4 * shape[1]) if groups == interface.NO_GROUPS else (shape[0], 4 * groups)
    statistics = buffers.new((rows, scalars + 1), gain.dtype)
    shares, of_bias, more = (buffers.new((interface.shares_of(rows, groups), shape[1]), gain.dtype) for _ in range(3))

    def run(sweep, **tensors):
        cpu.group_norm(sweep, x, gain, groups, 0.1, last, statistics=statistics, **tensors, **options)

    run(interface.FORWARD, out=z, bias=bias)
    run(interface.BACKWARD, out=g_x, grad=g, gain_grad=shares, bias_grad=of_bias)
    run(interface.TANGENT, out=source, grad=g, tangent=t, tangent_out=zdot, gain_grad=more)
    return buffers.results()
