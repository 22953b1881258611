"""torch.compile of plain code, with torch.autograd.grad where the gradients are: refused, or by a hidden switch.

A classifier has no such gradient; its compiled step is what a joint step is measured by.
"""

import torch
import torch.nn.functional as F

import cdn_kernels
from benchmarks.peers.functional import Functional
from cdn_kernels import reference


class CompiledNetwork(Functional):
    """The network compiled, and the step around it eager: what one tries first.

    Raises:
        RuntimeError: PyTorch refuses, in its own words, which are found out by a step.
    """

    def __init__(self, problem):
        super().__init__(problem)
        self.network = torch.compile(self.model, dynamic=False, fullgraph=True)
        try:
            self()
        except RuntimeError as error:
            raise RuntimeError(str(error).strip().partition("\n")[0]) from error

    def __call__(self):
        self.model.zero_grad()
        y, sigma, eps = self.draw()
        with cdn_kernels.using("reference"):
            loss = _joint_loss(self.problem, self.network, self.labels, y.requires_grad_(), sigma, eps)
            loss.backward()
        return float(loss)


class CompiledStep(Functional):
    """The plain step compiled as a whole, both calls of torch.autograd.grad in one graph.

    Needs ``torch._dynamo.config.trace_autograd_ops``, which PyTorch names in its refusal to trace them and leaves off.

    Raises:
        RuntimeError: this version of PyTorch has no such switch.
    """

    def __init__(self, problem):
        super().__init__(problem)
        self.options = getattr(getattr(torch, "_dynamo", None), "config", None)
        if not hasattr(self.options, "trace_autograd_ops"):
            raise RuntimeError(f"torch {torch.__version__} cannot trace torch.autograd.grad")
        self.step = torch.compile(self.gradient, dynamic=False, fullgraph=True)

    def __call__(self):
        y, sigma, eps = self.draw()
        with cdn_kernels.using("reference"), self.options.patch(trace_autograd_ops=True):
            gradient, loss = self.step(y.requires_grad_(), sigma, eps)
        return self.keep(dict(zip(self.parameters(), gradient)), loss)

    def gradient(self, y, sigma, eps):
        """Return (the gradient, parameter by parameter, and the loss)."""
        loss = _joint_loss(self.problem, self.model, self.labels, y, sigma, eps)
        return torch.autograd.grad(loss, list(self.model.parameters())), loss.detach()


class CompiledClassifier(Functional):
    """A step on cross-entropy alone, on noisy images, its network compiled; what anyone trains a classifier with."""

    def __init__(self, problem):
        super().__init__(problem)
        self.network = torch.compile(self.model, dynamic=False, fullgraph=True)

    def __call__(self):
        self.model.zero_grad()
        y, *_ = self.draw()
        with cdn_kernels.using("reference"):
            with self.problem.autocast():
                loss = F.cross_entropy(self.network(y), self.labels)
            loss.backward()
        return float(loss.detach())


def _joint_loss(problem, network, labels, y, sigma, eps):
    """Return cross-entropy plus denoising score matching, as one writes it down first."""
    with problem.autocast():
        logits = network(y)
    (score,) = torch.autograd.grad(reference.logsumexp(logits).sum(), y, create_graph=True)
    return F.cross_entropy(logits, labels) + reference.denoising_loss(score, sigma, eps)
