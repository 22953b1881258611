"""GELU, SiLU and residual + GELU + group normalization on the CPU against the reference, at every order."""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from cdn_kernels.backends import cpu, interface
from tests.kernels.passes import (
    DTYPES,
    HARD,
    LAYOUTS,
    ROWS,
    SHAPES,
    assert_activation_is_as_exact_as_eager,
    assert_activation_of_every_16_bit_number_is_within,
    assert_activation_passes_numerical_checks,
    assert_non_finite_samples_stay_alone,
    assert_norm_is_as_exact_as_eager,
    assert_norm_is_blank_at_the_floor_and_finite_everywhere,
    assert_norm_survives,
    assert_samples_of_constant_groups_are_dead,
    exact_elu,
    exact_gelu,
    exact_silu,
    norm,
    norm_inputs,
    run_all_plain_sweeps,
    run_all_sweeps,
)

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

activations = pytest.mark.parametrize("name", ["gelu", "silu", "elu"])
norms = pytest.mark.parametrize("keep", [True, False], ids=["scale-preserving", "plain"])
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


# ------------------------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------------------------


@activations
def test_an_activation_passes_numerical_checks(name):
    assert_activation_passes_numerical_checks("cpu", name=name)


@norms
@layouts
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_norm_passes_numerical_checks(keep, layout, residual, eps):
    x, r, gain = (t.requires_grad_() for t in norm_inputs((2, 6, 2, 2), torch.float64, layout))
    inputs = (x, r, gain) if residual else (x, gain)
    function = norm("cpu", 3, keep, eps, residual)
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(  # farther out torch's own second derivative of SiLU is a difference without digits
    "name, scale",
    [
        ("gelu", 1e-3),
        ("gelu", 1.0),
        ("gelu", 30.0),
        ("silu", 1e-3),
        ("silu", 1.0),
        ("silu", 3.0),
        ("elu", 1e-3),
        ("elu", 1.0),
        ("elu", 30.0),
    ],
)
def test_an_activation_is_as_exact_as_eager(name, dtype, scale):
    assert_activation_is_as_exact_as_eager("cpu", dtype, scale, name=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", cpu.USABLE)
@pytest.mark.parametrize(
    "kernel, exact", [(cpu.gelu, exact_gelu), (cpu.silu, exact_silu), (cpu.elu, exact_elu)], ids=["gelu", "silu", "elu"]
)
def test_an_activation_of_every_16_bit_number_is_within_the_stated_bound(kernel, exact, dtype, capability):
    kernel = functools.partial(kernel, capability=capability)
    assert_activation_of_every_16_bit_number_is_within(kernel, exact, dtype, 2.0**-20)


@pytest.mark.parametrize("capability", cpu.USABLE)
@pytest.mark.parametrize("dtype, relative", [(torch.float32, 5e-7), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("kernel, truth", [(cpu.silu, exact_silu), (cpu.elu, exact_elu)], ids=["silu", "elu"])
def test_others_are_exact_as_far_as_they_are_not_0(kernel, truth, dtype, relative, capability):
    u = torch.cat([torch.linspace(-83, 83, 4001, dtype=dtype), torch.logspace(-20, 0, 500, dtype=dtype).neg()])
    value, first, second, ones = (torch.ones_like(u) for _ in range(4))
    kernel(interface.FORWARD, u, None, None, value, None, capability=capability)
    kernel(interface.TANGENT, u, ones, ones, second, first, capability=capability)
    for result, (exact, terms) in zip((value, first, second), truth(u.double()), strict=True):
        assert ((result.double() - exact).abs() <= relative * terms).all()


@norms
@layouts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_norm_is_as_exact_as_eager(keep, layout, dtype, shape, groups):
    inputs = norm_inputs(shape, dtype, layout)
    assert_norm_is_as_exact_as_eager("cpu", groups, keep, inputs)
    assert_norm_is_as_exact_as_eager("cpu", groups, keep, inputs[::2])


@norms
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_norm_survives_hard_inputs(keep, layout, dtype, make):
    assert_norm_survives(make, "cpu", keep, dtype, layout)


@layouts
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_samples_of_constant_groups_are_dead(layout, impl):
    assert_samples_of_constant_groups_are_dead(impl, layout)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_norm_is_blank_at_the_floor_and_finite_everywhere(layout, dtype, impl):
    for eps in (1e-3, 1e-6):
        assert_norm_is_blank_at_the_floor_and_finite_everywhere(impl, dtype, layout, step=0.25, eps=eps)


def test_non_finite_samples_stay_alone():
    assert_non_finite_samples_stay_alone("cpu")


# ------------------------------------------------------------------------------------------------------------
# Memory, threads, processors
# ------------------------------------------------------------------------------------------------------------


norms_alone = pytest.mark.parametrize("sweeps", [run_all_sweeps, run_all_plain_sweeps], ids=["gelu", "plain"])


@norms_alone
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", [*SHAPES, *ROWS], ids=str)
def test_every_output_is_written_and_nothing_else(shape, groups, dtype, last, sweeps):
    for capability in cpu.USABLE:
        results, intact = sweeps(shape, groups, last, dtype, capability=capability)
        assert intact and all(not r.isnan().any() for r in results)


@norms_alone
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape, groups", [((5, 16, 32, 32), 2), ((600, 96, 1, 1), 1)], ids=["images", "rows"])
def test_threads_do_not_change_the_result(shape, groups, last, sweeps):
    one, two, three = (sweeps(shape, groups, last, threads=n)[0] for n in (1, 2, 3))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three))


@norms_alone
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape, groups", [((2, 24, 7, 5), 3), ((100, 75, 1, 1), 1)], ids=["images", "rows"])
def test_processors_agree(shape, groups, last, sweeps):
    best, _ = sweeps(shape, groups, last)
    for capability in cpu.USABLE[:-1]:
        for a, b in zip(best, sweeps(shape, groups, last, capability=capability)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_unknown_numbers_are_refused_by_the_library():
    x = torch.ones(1, 4, 2, 2)
    with pytest.raises(RuntimeError, match="refused"):
        cpu.gelu(7, x, None, None, x, None)
    for groups, eps in ((3, 0.1), (0, 0.1), (2, 0.0), (2, float("nan"))):
        with pytest.raises(RuntimeError, match="refused"):
            cpu.gelu_norm(
                interface.FORWARD, x, torch.ones(4), groups, eps, True, False, statistics=torch.empty(1, 17), out=x
            )
