"""What one would run instead of this library: the joint step by other means, classes like ``benchmarks.steps.Step``.

Constructors raise RuntimeError with the reason where a peer cannot do a problem. Nothing heavy is imported here.
"""

import importlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """A step by other means, imported when it is first built.

    Attributes:
        path: module in this package and class, as "module.Class".
        about: what it is, in one line.
        options: keyword arguments of the class.
        full: whether it runs with --full only: another that compiles as long gives much the same code.
    """

    path: str
    about: str
    options: dict = field(default_factory=dict)
    full: bool = False

    def __call__(self, problem):
        """Build the step for a problem, or raise RuntimeError with the reason why not."""
        module, name = self.path.split(".")
        return getattr(importlib.import_module(f".{module}", __name__), name)(problem, **self.options)


PEERS = {
    "compiled network": Peer("plain_compile.CompiledNetwork", "torch.compile of the network, double backward outside"),
    "compiled plain step": Peer("plain_compile.CompiledStep", "torch.compile of torch.autograd.grad, twice", full=True),
    "compiled": Peer("compiled.Compiled", "torch.compile of the functional gradient, torch.func.grad inside"),
    "unrolled": Peer("unrolled.Unrolled", "the functional gradient as a list of aten operations, compiled"),
    "forward over reverse": Peer("forward_over_reverse.ForwardOverReverse", "torch.func.jvp of the parameter gradient"),
    "finite difference": Peer("finite_difference.FiniteDifference", "central difference of the parameter gradient"),
    "finite difference, compiled": Peer(
        "finite_difference.FiniteDifference", "the same, the network compiled", {"compiled": True}, full=True
    ),
    "JAX": Peer("jax_step.Jax", "jit of a gradient with a gradient inside, in jax.numpy"),
}
