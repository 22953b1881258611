"""The module that other libraries call as D(x, sigma)."""

import pytest
import torch

import cdn


@pytest.fixture(params=["density", "direct"])
def model(request):
    if request.param == "density":
        return cdn.gradresnet_small(10, 1, width=8).eval()
    model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1)).eval()
    torch.nn.init.normal_(model.out.weight, std=0.1)
    return model


def test_it_denoises_for_every_form_of_sigma(model):
    denoiser, y = cdn.Denoiser(model), torch.rand(3, 1, 8, 8)
    expected = cdn.denoise(model, y, 0.2)
    assert expected.shape == y.shape and not torch.equal(expected, y)
    for sigma in (0.2, torch.tensor(0.2), torch.tensor([0.2]), torch.full((3,), 0.2), torch.full((3, 1, 1, 1), 0.2)):
        torch.testing.assert_close(denoiser(y, sigma), expected)
    torch.testing.assert_close(denoiser(x=y, sigma=0.2, unknown=1), expected)
    with pytest.raises(ValueError, match=r"one value per image, \[3\]"):
        denoiser(y, torch.full((2,), 0.2))


def test_it_is_differentiable_where_grad_mode_is_on(model):
    denoiser = cdn.Denoiser(model)
    y = torch.rand(2, 1, 8, 8, requires_grad=True)
    denoiser(y, 0.1).square().sum().backward()
    assert float(y.grad.abs().max()) > 0
    with torch.no_grad():
        assert not denoiser(y, 0.1).requires_grad


def test_given_a_class():
    model, y = cdn.gradresnet_small(10, 1, width=8).eval(), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(cdn.Denoiser(model, label=3)(y, 0.2), cdn.denoise(model, y, 0.2, label=3))


def test_it_moves_and_counts_as_a_module(model):
    denoiser = cdn.Denoiser(model)
    assert sum(p.numel() for p in denoiser.parameters()) == sum(p.numel() for p in model.parameters())
    assert denoiser.double()(torch.rand(1, 1, 8, 8, dtype=torch.float64), 0.1).dtype == torch.float64


def test_deepinv_takes_it_as_a_prior(model):
    """A proximal step of deepinv's plug-and-play prior is the denoiser itself."""
    deepinv = pytest.importorskip("deepinv")
    y = torch.rand(2, 1, 8, 8)
    prior = deepinv.optim.prior.PnP(denoiser=cdn.Denoiser(model))
    torch.testing.assert_close(prior.prox(y, 0.2), cdn.denoise(model, y, 0.2))
