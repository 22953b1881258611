"""Record what a training step does on a GPU once, and replay it: one launch instead of a thousand."""
import warnings

import torch

from .phases import watched

WARM_UP = 3


class Graphed:
    """Call a function that works on tensors in place, from its fifth call on by replaying a CUDA graph of it.

    The first calls run the function as it is, on a stream of their own: kernels are compiled and loaded, and what an
    optimizer keeps is made. The next call records the function, without running it, and then replays. Every call, of
    any kind, does the work of one, in the order of the current stream. While phases are watched
    (:func:`cdn_kernels.phases.watch`) the function runs as it is.

    Recorded are kernels and the addresses of tensors, so the function must do the same on every call: read its input
    from tensors that stay where they are (fill them, or copy into them), change state in place, and not wait for the
    device or look at a value. A number that changes from call to call must be in a tensor, as the learning rate and
    the offset of a :class:`cdn_kernels.Noise` key; optimizers of torch want ``capturable=True`` from the recording on.

    Args:
        function: takes nothing; returns tensors in containers, which a later call overwrites.
        capture: records a function on a stream and returns what replays it, to take its place.
        say: called with one sentence if recording fails; the function then runs as it is on every call.

    Source: "CUDA Graphs" in the notes on CUDA semantics of PyTorch's documentation, on capturing a whole network.
    """

    def __init__(self, function, *, capture=None, say=warnings.warn):
        self.function, self.capture, self.say = function, capture or capture_on_cuda, say
        self.calls, self.stream, self.replay = 0, None, None

    def __call__(self):
        """Do the work of the function and return what it returns."""
        if watched():
            return self.function()
        if self.replay is None:
            if self.calls < WARM_UP:
                self.calls += 1
                return self._on_stream()
            self.replay = self._record()
        return self.replay()

    def _on_stream(self):
        if not torch.cuda.is_available():
            return self.function()
        # The stream of the recording: nothing that autograd or a library keeps for it belongs to another one.
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self):
        try:
            return self.capture(self.function, self.stream)
        except Exception as error:  # whatever it is that cannot be recorded, it can be run
            cause = " ".join(str(error).split())[:200]
            self.say(f"the step runs without a CUDA graph, since recording one failed: {type(error).__name__}: {cause}")
            return self.function


def capture_on_cuda(function, stream):
    """Record a function on a stream; return a function that replays it and returns what it returned."""
    graph = torch.cuda.CUDAGraph()
    # A recording that fails leaves its own context without restoring the stream; this one does.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        result = function()

    def replay():
        graph.replay()
        return result

    return replay
