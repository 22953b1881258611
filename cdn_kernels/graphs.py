"""Record what a training step does once, and replay it: one launch, or one loop, instead of a thousand decisions."""

import gc
import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from cdn_kernels.phases import watched
from cdn_kernels.recording import Replayed

WARM_UP = 3

Result = TypeVar("Result")


def record_on_cuda(function: Callable[[], Result], stream: torch.cuda.Stream | None) -> Callable[[], Result]:
    """Record a function as a CUDA graph, without running it.

    Args:
        function: takes nothing, and works on the device of the stream.
        stream: where it is recorded; on one of torch's own if None.

    Returns:
        A function that replays it on the current stream and returns what it returned.
    """
    gc.collect()  # what dead cycles hold cannot be reused, and must not be freed while recording
    graph = torch.cuda.CUDAGraph()
    # A recording that fails leaves torch's context without restoring the stream; the outer one does.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        result = function()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class Graphed(Generic[Result]):
    """Call a function that works on tensors in place; after a few calls, by replaying what one of them did.

    On a GPU that is a CUDA graph. The first calls run the function as it is, on a stream of their own: kernels are
    compiled and loaded, and what an optimizer keeps is made. The next call records the function and replays it, as do
    all that follow. Each call does the work of one call, in the order of the current stream. While phases are watched
    (:mod:`cdn_kernels.phases`), the function runs as it is.

    On a CPU it is a :class:`cdn_kernels.recording.Replayed`, which tells what changed and then records anew, and is
    made for small networks: a step whose tensors take more than 256 MiB runs as it is.

    Recorded are kernels and addresses of tensors, so the function must do the same on every call: read its input from
    tensors that stay where they are (fill them, or copy into them), change state in place, and neither wait for the
    device nor look at a value. What changes from call to call, such as a learning rate or the offset of a
    :class:`cdn_kernels.Noise` key, must be in a tensor; torch's optimizers want ``capturable=True`` while recording
    on a GPU. Gradients are tensors of the recording, too: the next call overwrites them where the function, or its
    caller, cleared them before.

    Args:
        function: takes nothing; returns tensors, in any container, which the next call overwrites.
        device: where it works.
        say: called with one sentence if recording fails; the function then runs as it is.
        record: does the recording on a GPU, see :func:`record_on_cuda`.

    Source: "CUDA graphs" in PyTorch's notes on the semantics of CUDA, on whole networks.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        device: torch.device,
        *,
        say: Callable[[str], object] = warnings.warn,
        record: Callable[[Callable[[], Result], torch.cuda.Stream | None], Callable[[], Result]] | None = None,
    ) -> None:
        self.function, self.say, self.record = function, say, record or record_on_cuda
        # One stream for all that is not a replay: nothing that autograd keeps for it then belongs to another one.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.calls = 0
        self.replay: Callable[[], Result] | None = None
        if device.type == "cpu" and record is None:
            self.replay = Replayed(function, say)

    @property
    def gave_up(self) -> bool:
        """Whether the function runs as it is from now on, as it cannot be recorded or would not gain."""
        return self.replay is self.function or (isinstance(self.replay, Replayed) and self.replay.gave_up)

    def __call__(self) -> Result:
        """Do the work of the function and return what it returns."""
        if watched():
            return self.function()
        if self.replay:
            return self.replay()
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up()
        try:
            self.replay = self.record(self.function, self.stream)
        except Exception as error:  # whatever cannot be recorded can be run
            first = error.__context__ or error  # the end of a broken recording raises an error of its own
            cause = " ".join(str(first).split())[:200]
            self.say(f"steps run without a CUDA graph, because recording one failed: {type(first).__name__}: {cause}")
            self.replay = self.function
        return self.replay()

    def _warm_up(self) -> Result:
        if self.stream is None:
            return self.function()
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.function()
        current.wait_stream(self.stream)
        return result
