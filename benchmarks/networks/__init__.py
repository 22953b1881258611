"""Networks of all kinds, those of other people's packages among them, each trained in the form that is natural to it.

One table for the exactness test (tests/kernels/test_networks.py), the benchmark (benchmarks/test_networks.py) and the
page (docs/networks.md).
"""

from benchmarks.networks import atoms, images, written  # noqa: F401  what is imported enters the table
from benchmarks.networks.case import NETWORKS as NETWORKS
from benchmarks.networks.case import SIZES as SIZES
from benchmarks.networks.case import SPATIAL as SPATIAL
