"""The joint training step that is timed: of this library, of eager PyTorch, and the parts that they have in common."""

from dataclasses import dataclass

import torch

import cdn
import cdn_kernels
from benchmarks.harness.memory import peak_bytes
from cdn_kernels.graphs import WARM_UP, Graphed
from cdn_kernels.torch_private import TorchDispatchMode

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# By layers: the blocks of each stage. The shallow one has both kinds, with and without a stride.
BLOCKS = {6: (1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# By how much gradients of two implementations may differ, of their norm: what rounding does.
TOLERANCE = {"float32": 1e-3, "bf16": 5e-2}

# What a user would run, by name: options of a Step in a process of its own. Freed pages kept, as the library does it,
# is what anyone can have by two variables of glibc; the names say where it is so.
KEPT = ", pages kept"
_LAYOUTS = {"eager, channels last": {}, "eager, contiguous": dict(layout=torch.contiguous_format)}
EAGER = _LAYOUTS | {name + KEPT: dict(options, keep_pages=True) for name, options in _LAYOUTS.items()}


@dataclass(frozen=True)
class Problem:
    """What is trained on: a GradResNet, a batch of random images and a precision.

    Attributes:
        width, depth: of the network (18 or 34 layers, or 6, which are one block of each kind).
        batch, side: images [batch, 3, side, side].
        precision: "float32", or "bf16" under autocast.
        yardstick: plain norm and linear head, which every framework has, instead of the defaults of cdn.train.
        clean_share: of the images without noise, which take part in classification only.
        clean: "stratified", by which a step spares them the score, or "independent", by which it runs whole.
        device: "cpu" or "cuda".
    """

    width: int = 64
    depth: int = 18
    batch: int = 64
    side: int = 32
    precision: str = "bf16"
    yardstick: bool = False
    clean_share: float = 0.0
    clean: str = "stratified"
    device: str = "cpu"

    def model(self):
        """Build the network, with the same weights at every call."""
        torch.manual_seed(0)
        options = dict(norm="plain", head="linear") if self.yardstick else {}
        return cdn.GradResNet(width=self.width, blocks=BLOCKS[self.depth], **options).to(self.device)

    def data(self):
        """Draw images [B, 3, side, side] in [0, 1] and labels [B], the same at every call."""
        torch.manual_seed(1)
        x, labels = torch.rand(self.batch, 3, self.side, self.side), torch.randint(0, 10, (self.batch,))
        return x.to(self.device), labels.to(self.device)

    @property
    def levels(self):
        """The law of the noise levels."""
        return cdn_kernels.NoiseLevels(clean_share=self.clean_share, clean=self.clean)

    def autocast(self):
        """Return the context that a forward of this precision runs in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def __str__(self):
        kind = "plain norm, linear head, " if self.yardstick else ""
        clean = f" ({self.clean_share:.0%} clean)" if self.clean_share else ""
        images = f"{self.batch} images{clean} of {self.side}x{self.side}"
        return f"GradResNet-{self.depth}, width {self.width}, {kind}{images}, {self.precision}"


class Step:
    """A training step without the optimizer: forward, score, and backward through both.

    Args:
        problem: what to train on.
        impl: what runs the library's operations; "reference" is eager PyTorch with double backward.
        layout: memory format of weights and images.
        denoising: weight of the denoising term; without it, this is a step of a classifier.
    """

    def __init__(self, problem, impl="reference", layout=torch.channels_last, denoising=1.0):
        self.problem, self.impl, self.denoising = problem, impl, denoising
        self.model = problem.model().to(memory_format=layout)
        x, self.labels = problem.data()
        self.x = x.contiguous(memory_format=layout)

    def work(self):
        """Do all of a step but wait for its loss; return that."""
        self.model.zero_grad()
        with self.problem.autocast():
            loss, _ = cdn.joint_step(
                self.model,
                self.x,
                self.labels,
                self.problem.levels,
                cdn_kernels.Noise(0),
                denoising_weight=self.denoising,
                impl=self.impl,
            )
        return loss

    def __call__(self):
        """Run a step; return its loss and leave its gradient in ``.grad`` of the parameters."""
        return float(self.work())

    def result(self):
        """Return the gradient of the last step as one vector, parameter by parameter, float32 on the CPU."""
        return torch.cat([p.grad.float().cpu().contiguous().flatten() for p in self.model.parameters()])


class Score(Step):
    """The score alone, without a graph."""

    def work(self):
        """Find the score, and return one of its numbers without waiting for it."""
        with self.problem.autocast(), cdn_kernels.using(self.impl):
            self.score = cdn.score(self.model, self.x)
        return self.score[0, 0, 0, 0]

    def result(self):
        """Return the last score as one vector."""
        return self.score.float().cpu().contiguous().flatten()


class Recorded:
    """A step or a score as ``cdn.train --fused`` runs steps: a CUDA graph, replayed, or on a CPU a recording.

    Args:
        build: Step or Score.
        problem, impl: for it.

    Attributes:
        recorded_bytes: the memory that recording took at its peak, on a CPU with the calls before; replays take none.

    Raises:
        RuntimeError: it cannot be recorded; the message says why.
    """

    def __init__(self, build, problem, impl):
        self.case = build(problem, impl)
        self.run = Graphed(self.case.work, torch.device(problem.device), say=_refuse)
        if problem.device == "cpu":
            self.case()  # what libraries do at their first call is not the recording's
            self.recorded_bytes = peak_bytes(self._warm_up)
        else:
            self._warm_up()
            self.recorded_bytes = peak_bytes(self.run, problem.device)
        self.result = self.case.result

    def _warm_up(self):
        for _ in range(WARM_UP):
            self.run()

    def __call__(self):
        """Run it; return a number that only a finished run knows."""
        return float(self.run())


def _refuse(sentence):
    raise RuntimeError(sentence)


class SixUnits(TorchDispatchMode):
    """The convolutions of a joint step alone, by PyTorch: forward, input and weight gradient of each layer, twice."""

    def __init__(self, problem):
        super().__init__()
        self.calls, self.flops = [], 0
        step = Step(problem)
        with self, torch.no_grad(), cdn_kernels.using("reference"), problem.autocast():
            step.model(step.x)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.calls.append((torch.randn_like(args[0]), torch.randn_like(args[1]), torch.randn_like(out), args[3:]))
            self.flops += 6 * 2 * out.numel() * args[1][0].numel()
        return out

    def __call__(self):
        """Run them."""
        for x, weight, g, options in self.calls:
            for _ in range(2):
                torch.ops.aten.convolution(x, weight, None, *options)
                torch.ops.aten.convolution_backward(g, x, weight, None, *options, [True, True, False])
