"""The step written out as one list of aten operations, without derivatives, and compiled as such."""

import torch
from torch.func import grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

import cdn_kernels
from benchmarks.peers.functional import Functional


class Unrolled(Functional):
    """The functional gradient traced by make_fx, without dead code, compiled by inductor.

    The graph holds, for every layer (the first has no input gradient in the backward), the same convolutions as double
    backward: the forward; the input gradient of the score; one forward convolution along the tangent; one convolution
    with a kernel the size of its image (32x32 to 4x4), which is the second share of the weight gradient; and a backward
    with input and weight gradient. These are the six units, one of them in a form that libraries are not tuned for.

    Args:
        problem: see :class:`Step`.
        options: of inductor.
    """

    def __init__(self, problem, options=None):
        super().__init__(problem)
        with cdn_kernels.using("reference"):
            traced = make_fx(lambda parameters, y, sigma, eps: grad_and_value(self.loss)(parameters, y, sigma, eps))(
                self.parameters(), *self.draw()
            )
        traced.graph.eliminate_dead_code()
        traced.recompile()
        self.step = torch.compile(traced, dynamic=False, fullgraph=True, options=options)

    def __call__(self):
        return self.keep(*self.step(self.parameters(), *self.draw()))
