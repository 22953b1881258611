"""A network of the table: how it is built and called, and the same step by PyTorch alone.

Builders follow the default dtype, so that ``torch.set_default_dtype(torch.float64)`` makes all of a network float64.
"""

import ast
import importlib.metadata
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import cdn_kernels
from cdn_kernels.torch_private import tensors_in, tree_map

SIZES = ("small", "larger")
# What most operations of a network are.
SPATIAL, OTHER = "2-D convolutions", "1x1, depthwise, 1-D or 3-D convolutions, or none"


@dataclass
class Call:
    """A training step by one call of score_matching_step; the fields are the arguments of that."""

    network: nn.Module
    y: Any
    loss: Callable[..., Tensor]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    log_density: Callable[..., Tensor] | None = None

    def to(self, layout):
        """Store filters, and images if y is some, in a layout."""
        self.network.to(memory_format=layout)
        if isinstance(self.y, Tensor) and self.y.dim() == 4:
            self.y = self.y.contiguous(memory_format=layout)

    def library(self):
        """Run the step by this library."""
        cdn_kernels.score_matching_step(**vars(self))

    def eager(self):
        """Run the step as one writes it in PyTorch: a graph of the gradient, and backward through it."""
        y = tree_map(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t, self.y)
        with sdpa_kernel(SDPBackend.MATH):  # what others of its kernels saved cannot be differentiated twice
            outputs = self.network(*(y if isinstance(y, tuple) else (y,)), *self.args, **(self.kwargs or {}))
        value = _with_y(self.log_density or _usual_density, y)(outputs)
        leaves = [t for t in tensors_in(y) if t.requires_grad]
        gradients = iter(torch.autograd.grad(value.sum(), leaves, create_graph=True))
        score = tree_map(lambda t: next(gradients) if t.requires_grad else None, y)
        _with_y(self.loss, y)(outputs, score).backward()


@dataclass
class Inside:
    """A training step of a network that differentiates inside its own forward.

    Attributes:
        network: what has the parameters.
        loss: a function without arguments that calls the network and returns the scalar to differentiate.
    """

    network: nn.Module
    loss: Callable[[], Tensor]

    def to(self, layout):
        """Store filters in a layout, which images follow."""
        self.network.to(memory_format=layout)

    def library(self):
        """Run the step by this library."""
        with cdn_kernels.first_order(self.network):
            total = self.loss()
        total.backward()

    def eager(self):
        """Run the step as one writes it in PyTorch."""
        self.loss().backward()


def _usual_density(outputs):
    return outputs if outputs.dim() == 1 else outputs.logsumexp(1)


def _with_y(function, y):
    """Return a function with its parameter y bound, if it has one."""
    return (lambda *args: function(*args, y=y)) if "y" in inspect.signature(function).parameters else function


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        name: what people call it.
        package: the distribution that has it, None for one that is written here.
        kind: what most of its operations are.
        build: a function of sizes that returns a Call or an Inside.
        sizes: keyword arguments of build, by the names SIZES.
        tolerance: by how much gradients of two implementations may differ in float32, of their norm.
    """

    name: str
    package: str | None
    kind: str
    build: Callable[..., Call | Inside]
    sizes: dict[str, dict[str, int]]
    tolerance: float

    def case(self, size):
        """Build it, with the same weights and samples at every call; ImportError where its package is missing."""
        torch.manual_seed(0)
        return self.build(**self.sizes[size])

    @property
    def version(self):
        """The version of its package, None where that is not installed or there is none."""
        try:
            return self.package and importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def missing(self):
        """Why it cannot be built here, or None."""
        return f"{self.package} is not installed" if self.package and not self.version else None

    def lines(self):
        """Return what its step takes in the code of a user: the source of ``build``, with the call it describes."""
        source = textwrap.dedent(inspect.getsource(self.build))
        (function,) = ast.parse(source).body
        body = textwrap.dedent("\n".join(source.splitlines()[function.body[0].lineno - 1 :]))
        inside = r"with cdn_kernels.first_order(\1):\n    total = \2()\ntotal.backward()"
        text = re.sub(r"^return Inside\((\w+), (\w+)\)", inside, body, flags=re.MULTILINE)
        return re.sub(r"^return Call\(", "cdn_kernels.score_matching_step(", text, flags=re.MULTILINE).strip()


NETWORKS: dict[str, Network] = {}


def network(name, kind, *, package=None, tolerance=1e-3, small, larger):
    """Return the decorator of a builder that enters it into NETWORKS."""

    def enter(build):
        NETWORKS[name] = Network(name, package, kind, build, dict(small=small, larger=larger), tolerance)
        return build

    return enter
