"""torch.compile of the whole step, or score: what PyTorch itself offers to those who differentiate twice."""

import torch
from torch.func import grad, grad_and_value

import cdn_kernels
from benchmarks.peers.functional import Functional
from benchmarks.steps import Score


class Compiled(Functional):
    """The functional gradient, ``grad_and_value`` of a loss with ``grad`` inside, in one compiled graph.

    Static shapes, channels last, one graph without breaks. The noise is drawn outside, see :class:`Functional`.
    The first call compiles, in minutes on a CPU. Of the convolutions, see :mod:`.unrolled`.

    Args:
        problem: see :class:`Step`.
        options: of inductor, for instance ``{"max_autotune": True}``.
    """

    def __init__(self, problem, options=None):
        super().__init__(problem)
        self.step = torch.compile(grad_and_value(self.loss), dynamic=False, fullgraph=True, options=options)

    def __call__(self):
        with cdn_kernels.using("reference"):
            return self.keep(*self.step(self.parameters(), *self.draw()))


class CompiledScore(Functional):
    """The score alone, a functional gradient by the input in one compiled graph."""

    result = Score.result

    def __init__(self, problem):
        super().__init__(problem)
        self.gradient = torch.compile(grad(self.log_density, argnums=1, has_aux=True), dynamic=False, fullgraph=True)

    def __call__(self):
        with cdn_kernels.using("reference"):
            self.score, _ = self.gradient(self.parameters(), self.x)
        return float(self.score[0, 0, 0, 0])
