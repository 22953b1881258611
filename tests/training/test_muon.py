"""Muon against torch's own, which takes matrices only, and its division of labour with AdamW."""

import pytest
import torch

from cdn.model import GradResNet
from cdn.training.muon import COEFFICIENTS, STEPS, Muon, _iterated, orthogonalize, result_dtype
from cdn.training.recipe import make_optimizer


@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5), (1, 7), (8, 3, 3, 3), (40, 4, 1, 1)], ids=str)
def test_steps_equal_those_of_torch_on_flattened_filters(shape):
    weight = torch.randn(shape)
    own, theirs = weight.clone().requires_grad_(), weight.flatten(1).clone().requires_grad_()
    mine = Muon([own], 0.1, weight_decay=0.02)
    oracle = torch.optim.Muon([theirs], 0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape)
        own.grad, theirs.grad = gradient.clone(), gradient.flatten(1).clone()
        mine.step()
        oracle.step()
    # Both round to bfloat16 in between, in their own order.
    torch.testing.assert_close(own.detach().flatten(1), theirs.detach(), rtol=0.02, atol=0.02)


def test_orthogonalized_matrices_have_singular_values_near_one():
    for shape in ((16, 16), (10, 90), (90, 10)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.max() < 1.3 and values.median() > 0.6
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(16, 16), (10, 90), (90, 10), (64, 576), (1, 7)], ids=str)
@pytest.mark.parametrize("rank", [100, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_singular_values_go_through_the_quintic(shape, rank, dtype, tolerance):
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values[rank:] = 0  # their squares may come out negative
    iterated = values / values.norm()
    for _ in range(STEPS):
        iterated = sum(factor * iterated**power for factor, power in zip(COEFFICIENTS, (1, 3, 5)))
    found = orthogonalize((left @ values.diag() @ right).to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), left @ iterated.diag() @ right, rtol=tolerance, atol=tolerance)


def test_gpus_iterate_in_their_way():
    x = torch.randn(10, 90, dtype=torch.float64)
    torch.testing.assert_close(_iterated(x / x.norm()), orthogonalize(x), rtol=1e-9, atol=1e-9)
    assert result_dtype(x.float().to("meta")) == torch.bfloat16 and result_dtype(x.to("meta")) == torch.float64


def test_a_flag_skips_the_step():
    p = torch.randn(4, 6).requires_grad_()
    optimizer = Muon([p], 0.1)
    p.grad = torch.randn_like(p)
    optimizer.step()
    before, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.full_like(p, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(p, before) and torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    p.grad, optimizer.found_inf = torch.randn_like(p), torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(p, before)


def test_a_fixed_norm_is_kept():
    for dtype in (torch.float32, torch.float64):
        p = torch.randn(4, 3, 3, 3, dtype=dtype).requires_grad_()
        optimizer, norm = Muon([p], 0.1, weight_decay=0.0, fixed_norm=True), float(p.detach().norm())
        before = p.detach().clone()
        for _ in range(20):
            p.grad = torch.randn_like(p)
            optimizer.step()
        assert float(p.detach().norm()) == pytest.approx(norm, rel=1e-5)
        assert (p.detach() - before).norm() > 0.1 * norm
    zero = torch.zeros(2, 3).requires_grad_()
    zero.grad = torch.randn(2, 3)
    Muon([zero], 0.1, fixed_norm=True).step()
    assert torch.equal(zero.detach(), torch.zeros(2, 3))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"two or more dimensions, got shape \[3\]"):
        Muon([torch.randn(3)], 0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer(name):
    model = GradResNet(width=8)
    optimizer = make_optimizer(model, name, 1e-3, 0.01)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    kept = {id(p) for group in optimizer.param_groups if group.get("fixed_norm") for p in group["params"]}
    assert decayed | kept == {id(p) for p in model.parameters() if p.dim() > 1} and not decayed & kept
    # First and last layers, and gains, stay with AdamW.
    adamw = {id(p) for group in optimizer.members[0].param_groups for p in group["params"]}
    assert id(model.trunk.stem[0].weight) in adamw and id(model.head.classes.weight) in adamw
    assert (id(model.trunk.stages[0][0].first.weight) in adamw) == (name == "adamw")
