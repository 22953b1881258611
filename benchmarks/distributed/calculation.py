"""The efficiency that many GPUs would have, as a calculation: nothing here is measured but what it is given."""

import math

from benchmarks.harness.table import markdown
from cdn.training.reduction import BUCKET

COUNTS = (8, 16, 32, 64, 128, 256)
STEPS = (0.02, 0.05, 0.2)  # seconds of a step on one GPU
OF_MACHINE = 8  # GPUs in a machine
# Bytes a second that a GPU sends within a machine, or a machine sends to others, and seconds that a message takes.
WITHIN = 300e9, 5e-6
WIRE = 0.8 / 8  # bytes a second for each bit a second that a link is sold as
BETWEEN = {
    "400 Gbit/s for each GPU": (OF_MACHINE * 400e9 * WIRE, 15e-6),
    "100 Gbit/s for a machine": (100e9 * WIRE, 30e-6),
    "25 Gbit/s for a machine": (25e9 * WIRE, 30e-6),
}
TEXT = """## Calculated: 8 to 256 GPUs

No GPU has run this. The share of a perfect speedup that is left if every GPU keeps its number of images, by the time
that a step takes on one GPU, from these assumptions:

* The gradient is {megabytes:.0f} MB. Rings send 2 (N - 1) / N times that from every GPU, and from every machine; each
  of the {buckets} buckets takes as long as 2 log2(N) messages besides.
* A GPU sends {within:.0f} GB/s to others of its machine of {of_machine}, and a message takes {within_delay:.0f}
  microseconds. Between machines there is what the table names, of which 80 % are used, and a message takes {delays}
  microseconds.
* The exchange can hide behind {share:.0%} of the step, which is how long it went on beside the last sweep above, but
  for its last bucket. Steps that are recorded as CUDA graphs hide nothing: the second number.
* Two exchanges of some bytes are not hidden. Nothing else differs between GPUs, and none waits for a slower one.
"""


def calculation(parameters, share):
    """Return the part of the page.

    Args:
        parameters: of the model.
        share: of a step, during which an exchange can go on.
    """
    size = 4 * parameters
    head = TEXT.format(
        megabytes=size / 1e6,
        buckets=math.ceil(size / BUCKET),
        within=WITHIN[0] / 1e9,
        within_delay=WITHIN[1] * 1e6,
        of_machine=OF_MACHINE,
        delays=" or ".join(dict.fromkeys(f"{delay * 1e6:.0f}" for _, delay in BETWEEN.values())),
        share=share,
    )
    rows = [["link between machines", "step on one GPU", *(f"{count} GPUs" for count in COUNTS)]]
    rows.append(["---"] * len(rows[0]))
    for name, link in BETWEEN.items():
        for step in STEPS:
            cells = [
                f"{efficiency(size, step, count, link, share):.0%}, {efficiency(size, step, count, link, 0.0):.0%}"
                for count in COUNTS
            ]
            rows.append([name, f"{1e3 * step:.0f} ms", *cells])
    return head + "\n" + markdown(rows)


def efficiency(size, step, count, between, share):
    """Return the share of a perfect speedup.

    Args:
        size: bytes of the gradient.
        step: seconds of a step on one GPU.
        count: GPUs.
        between: bytes a second that a machine sends to others, and seconds of a message.
        share: of the step, during which the exchange can go on.
    """
    rate, delay = (min(between[0], WITHIN[0]), between[1]) if count > OF_MACHINE else WITHIN
    buckets = math.ceil(size / BUCKET)
    message = 2 * math.log2(count) * delay
    exchange = 2 * (count - 1) / count * size / rate + buckets * message
    hidden = min(share * step, exchange * (1 - 1 / buckets))
    return step / (step + exchange - hidden + 2 * message)
