"""A step of a network of the table, to be timed."""

import torch

from benchmarks.networks import NETWORKS

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


class NetworkStep:
    """A step of a network, without the optimizer.

    Args:
        name, size: of a row of NETWORKS.
        way: "library" or "eager".
        layout: of filters and images, a key of LAYOUTS.
    """

    def __init__(self, name, size, way, layout="contiguous"):
        self.case = NETWORKS[name].case(size)
        self.case.to(LAYOUTS[layout])
        self.run = getattr(self.case, way)

    def __call__(self):
        self.case.network.zero_grad()
        torch.default_generator.manual_seed(0)  # of dropout, to be the same everywhere
        self.run()

    def result(self):
        """Return the gradient of the last step as one vector, parameter by parameter."""
        gradients = [p.grad for p in self.case.network.parameters() if p.grad is not None]
        return torch.cat([g.contiguous().flatten() for g in gradients])
