"""A small energy of every operation, and what its gradients must do whatever the backend."""

import torch

import cdn_kernels


def network(impl):
    """Return a function of an image and four parameters that uses every operation."""

    def energy(y, stem, first, second, gain):
        h = cdn_kernels.conv2d_gelu(y, stem, impl=impl)
        v = cdn_kernels.conv2d_gelu_conv2d(h, first, second, impl=impl)
        h = cdn_kernels.gelu_group_norm(v, gain, 2, residual=h, impl=impl)
        return h.square().mean((1, 2, 3))

    return energy


def network_inputs(dtype=torch.float64, size=6):
    shapes = [(2, 3, size, size), (8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3)]
    inputs = [torch.randn(s, dtype=dtype) * (0.3 if len(s) == 4 and s[1] == 8 else 1) for s in shapes]
    return [i.requires_grad_() for i in (*inputs, torch.rand(8, dtype=dtype) + 0.5)]


def penalty(energy, y, *parameters):
    """A gradient penalty: the mean square of the score."""
    return torch.autograd.grad(energy(y, *parameters).log().sum(), y, create_graph=True)[0].square().mean()


def assert_gradient_penalties_equal_the_reference(impl):
    inputs = network_inputs()
    mine = torch.autograd.grad(penalty(network(impl), *inputs), inputs)
    exact = torch.autograd.grad(penalty(network("reference"), *inputs), inputs)
    for a, b in zip(mine, exact):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def assert_compiles_without_graph_breaks(run, inputs):
    """Compare the gradients of a function by its inputs with those of the same, compiled."""
    expected = torch.autograd.grad(run(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, expected):
        torch.testing.assert_close(a, b)
