"""The same step in JAX: jit of a gradient with a gradient inside."""

import os

import torch

from benchmarks.peers.functional import Functional


class Jax(Functional):
    """``jit(value_and_grad(loss))`` of the network in jax.numpy, channels last, with the weights of the torch model.

    Under bf16, as under autocast: convolutions and what is stored in bf16; statistics, the head and GELU (rounded once)
    in float32; the stem on two bf16 parts of its input. The noise is the library's, handed over without a copy.
    Nothing is donated: the weights outlive the step, and no result has the size of what it reads.

    On a CPU, XLA gets as many threads as torch has when the first step of the process is built; it reads their number
    from the environment once. On a GPU it takes memory as it needs it, so that torch finds some.

    Args:
        problem: see :class:`Step`.

    Raises:
        RuntimeError: JAX is not installed, or has no device of the problem's kind.
    """

    def __init__(self, problem):
        super().__init__(problem)
        os.environ.setdefault("NPROC", str(torch.get_num_threads()))
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        try:
            import jax
        except ImportError as error:
            raise RuntimeError("JAX is not installed: pip install jax; for a GPU, pip install 'jax[cuda12]'") from error
        from benchmarks.peers.jax_network import joint_loss

        self.jax, self.device = jax, jax.devices("gpu" if problem.device == "cuda" else "cpu")[0]
        self.weights = {name: self.copy(_channels_last(p)) for name, p in self.parameters().items()}
        mean, labels = self.copy(self.model.mean.permute(0, 2, 3, 1)), self.copy(self.labels)
        config, half = self.model.config, problem.precision == "bf16"
        self.step = jax.jit(
            jax.value_and_grad(lambda weights, *data: joint_loss(config, half, weights, mean, *data, labels))
        )

    def __call__(self):
        y, sigma, eps = self.draw()
        data = (y.permute(0, 2, 3, 1), sigma, eps.permute(0, 2, 3, 1))  # channels last are contiguous like this
        loss, self.gradient = self.jax.block_until_ready(
            self.step(self.weights, *map(self.jax.dlpack.from_dlpack, data))
        )
        return float(loss)

    def copy(self, tensor):
        """Copy a tensor of torch to an array of JAX."""
        return self.jax.device_put(tensor.cpu().numpy(), self.device)

    def result(self):
        """Return the gradient in the order and layout of the torch model."""
        gradient = [torch.tensor(self.jax.device_get(self.gradient[name])) for name in self.weights]
        return torch.cat([(g.permute(3, 2, 0, 1) if g.dim() == 4 else g).float().flatten() for g in gradient])


def _channels_last(parameter):
    """Return filters [O, I, H, W] as [H, W, I, O], and other parameters as they are."""
    return (parameter.permute(2, 3, 1, 0) if parameter.dim() == 4 else parameter).contiguous()
