"""Shapes, layouts and dtypes that no one thought of: every operation against the reference, at every order."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from tests.kernels.oracle import assert_as_exact_as_eager

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

# The same examples every time: a red run can be repeated.
repeatable = settings(max_examples=60, deadline=None, derandomize=True, database=None)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
sides = st.integers(1, 20)


def arrange(x, how):
    """Return the values of x in another place: contiguous, channels last, a slice of a larger tensor, or transposed."""
    if how == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "slice":
        return torch.cat([x, x], 3)[..., ::2].copy_(x)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


arrangements = st.sampled_from(["contiguous", "channels last", "slice", "transposed"])


@repeatable
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 9),
    height=sides,
    width=sides,
    dtype=dtypes,
    how=arrangements,
    residual=st.booleans(),
    keep=st.booleans(),
    eps=st.sampled_from([0.01, 0.3]),
)
def test_norm(batch, groups, per_group, height, width, dtype, how, residual, keep, eps):
    # Of one or two values, second order is a difference of equal numbers: there is no scale to measure errors by.
    assume(per_group * height * width >= 4)
    torch.manual_seed(batch + 10 * height + 300 * width)
    x, r = (arrange(torch.randn(batch, groups * per_group, height, width).to(dtype), how) for _ in range(2))
    gain = (torch.rand(x.shape[1]) + 0.5).to(reference.compute_dtype(dtype))
    norm = lambda impl: (
        lambda x, gain, r=None: cdn_kernels.gelu_group_norm(
            x, gain, groups, residual=r, eps=eps, scale_preserving=keep, impl=impl
        )
    )
    # Groups of a few values can have any variance near 0, where second order grows like 1 / eps^2.
    ulps = 1 + (0.3 / eps) ** 2 / 4
    assert_as_exact_as_eager(norm("cpu"), norm("reference"), (x, gain, r) if residual else (x, gain), ulps=ulps)


@repeatable
@given(batch=st.integers(1, 3), channels=st.integers(1, 70), height=sides, width=sides, dtype=dtypes, how=arrangements)
def test_pooling_and_gelu(batch, channels, height, width, dtype, how):
    torch.manual_seed(batch + 10 * height + 300 * width)
    x = arrange(torch.randn(batch, channels, height, width).to(dtype), how)
    for op in (cdn_kernels.gelu, cdn_kernels.channel_mean):
        assert_as_exact_as_eager(lambda x: op(x, impl="cpu"), lambda x: op(x, impl="reference"), [x])


@repeatable
@given(
    batch=st.integers(1, 2),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    height=sides,
    width=sides,
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    how=arrangements,
)
def test_convolution(batch, inputs, outputs, height, width, size, stride, how):
    torch.manual_seed(batch + 10 * height + 300 * width)
    x = arrange(torch.randn(batch, inputs, height, width), how)
    weight = torch.randn(outputs, inputs, size, size) / (size * inputs**0.5)
    conv = lambda impl: lambda x, weight: cdn_kernels.conv2d_gelu(x, weight, stride, impl=impl)
    # Another algorithm of the vendor's library sums the same products in another order.
    assert_as_exact_as_eager(conv("cpu"), conv("reference"), (x, weight), ulps=8)
