"""The score of any log-density: its gradient by its input."""

from collections.abc import Callable

from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import using


def score(
    log_density: Callable[[Tensor], Tensor], y: Tensor, *, create_graph: bool = False, impl: str = "auto"
) -> Tensor:
    """Differentiate a log-density with respect to its input: ``s(y) = grad_y log_density(y)``.

    Nothing is asked of log_density but that torch can differentiate it: an energy model, a force field, a critic. One
    that is made of this library's operations computes no weight gradients on the way, and with ``create_graph=True``
    leaves a graph whose backward pass consists of first-order convolutions and one pass per operation.

    Args:
        log_density: a function or module from samples [B, ...] to log-densities of any shape, which are summed: one
            for each sample, [B], or for each patch or group; a sample must not count in those of others.
        y: samples [B, ...].
        create_graph: keep the graph, so that the score can be differentiated again.
        impl: what runs the library's operations inside log_density, where these leave it open: "auto",
            "reference", "cpu" or "triton".

    Returns:
        s, the shape of y. The grad mode and ``y.requires_grad`` are left as found.

    Raises:
        TypeError: y, or what log_density returns, is no tensor of floats.
        ValueError: log_density does not depend on y differentiably.
        RuntimeError: the chosen impl cannot run here.
    """
    with using(impl):
        return reference.score(log_density, y, create_graph=create_graph)
