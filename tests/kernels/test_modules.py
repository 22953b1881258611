"""The modules and the score, as someone with an energy model of their own would use them."""

import pytest
import torch
from torch import nn

import cdn_kernels
from cdn_kernels import ConvGELU, GELUGroupNorm


class Energy(nn.Module):
    """A small energy model: one value per image."""

    def __init__(self, impl):
        super().__init__()
        self.stem = ConvGELU(3, 8, impl=impl)
        self.first = ConvGELU(8, 8, impl=impl)
        self.norm = GELUGroupNorm(2, 8, eps=1e-2, scale_preserving=False, impl=impl)

    def forward(self, y):
        h = self.stem(y)
        return -self.norm(self.first(h), h).square().mean((1, 2, 3))


class PlainEnergy(nn.Module):
    """The same of torch's modules, with the same names."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 8, eps=1e-2)

    def forward(self, y):
        h = nn.functional.gelu(self.stem(y))
        return -self.norm(nn.functional.gelu(nn.functional.gelu(self.first(h)) + h)).square().mean((1, 2, 3))


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_states_of_plain_torch_modules_fit_and_penalties_agree(impl):
    plain, model = PlainEnergy().double(), Energy(impl).double()
    model.load_state_dict({name: value for name, value in plain.state_dict().items() if name != "norm.bias"})
    y = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    gradients = []
    for network in (plain, model):
        penalty = cdn_kernels.score(network, y, create_graph=True).square().sum()
        names, parameters = zip(*((n, p) for n, p in network.named_parameters() if n != "norm.bias"))
        gradients.append((penalty.detach(), *torch.autograd.grad(penalty, parameters)))
    for exact, own in zip(*gradients):
        torch.testing.assert_close(own, exact)


def test_the_choice_of_score_reaches_into_the_model():
    y, model = torch.randn(1, 3, 4, 4, device="meta"), Energy("auto").to("meta")
    assert cdn_kernels.score(model, y, impl="reference").shape == y.shape
    with pytest.raises(RuntimeError, match="conv2d_gelu: impl='cpu' cannot run"):
        cdn_kernels.score(model, y, impl="cpu")


def test_modules_describe_themselves_and_refuse_what_cannot_be():
    assert "kernel_size=3" in repr(ConvGELU(3, 8)) and "scale_preserving=True" in repr(GELUGroupNorm(2, 8))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 2"):
        ConvGELU(3, 8, 2)
    with pytest.raises(ValueError, match="num_groups must divide the 8 channels, got 3"):
        GELUGroupNorm(3, 8)
