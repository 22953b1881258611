"""Write the table that impl="auto" chooses by on a GPU, from recorded runs of the benchmarks there.

    pytest benchmarks/test_passes.py --benchmark-only --device cuda --benchmark-json passes.json
    pytest benchmarks/test_convolutions.py --benchmark-only --full --device cuda --benchmark-json convolutions.json
    python -m benchmarks.choices passes.json convolutions.json

``python -m benchmarks.gpu_report --out DIR`` does all of this and leaves the table in DIR. What it says of other GPUs
stays. A difference counts where the interval of the ratios of rounds does not hold 1, and for several cases together
where the ends of all their intervals add up to one still.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.harness.record import read
from benchmarks.harness.timing import FEWEST_ROUNDS, Ratio, summarize
from benchmarks.page import merge
from benchmarks.steps import DTYPES
from cdn_kernels.backends import measured

# The passes that an operation is made of, by the beginnings of their names.
PASSES = {
    "gelu": ["gelu"],
    "gelu_group_norm": ["norm"],
    "channel_mean": ["pool mean", "pool spread"],
    "energy": ["pool dot", "pool scale"],
    "sample_noise": ["add noise"],
    "denoising_loss": ["denoising"],
}
# The maps of a convolution, as test_convolutions.py and as the table call them.
MAPS = {
    "forward": "forward",
    "forward, GELU": "forward_gelu",
    "by the input": "input",
    "by the input, GELU": "input_gelu",
    "by the filters": "weight",
}
OWN, TORCH = "this library", "PyTorch"


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choices", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="JSON")
    parser.add_argument(
        "--out", type=Path, default=measured.FILE, metavar="FILE", help="the table (default: that of the package)"
    )
    args = parser.parse_args(argv)
    record, *others = merge([read(path) for path in args.runs])
    if others:
        raise SystemExit(f"expected runs of one machine, got {record.machine['device']} and others")
    entry = choices(record)
    table = measured.TABLE | {record.machine["device"]: entry}
    args.out.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(f"{args.out}: {record.machine['device']}")
    for what in ("passes", "layers"):
        for name, row in entry[what].items():
            print(f"  {name:<36} {row['fastest'] or 'no difference'}")
    for name, row in entry["convolutions"].items():
        print(f"  {name:<36} {'own' if measured.is_faster(row) else 'torch'}: {Ratio(*row['torch'])}")


def choices(record):
    """Return what the table says of a GPU, see cdn_kernels.backends.measured.

    Args:
        record: a :class:`.harness.record.Record`.

    Raises:
        SystemExit: no case of kernels for GPUs, with enough rounds to tell a difference from noise.
    """
    usable = lambda results: [
        result
        for result in results
        if result["facts"].get("backend") in ("triton", "cuda") and len(result["seconds"][OWN]) >= FEWEST_ROUNDS
    ]
    passes, convolutions = usable(record.of("pass")), usable(record.of("convolution"))
    if not passes and not convolutions:
        raise SystemExit(f"expected cases of the kernels for GPUs, in {FEWEST_ROUNDS} rounds or more, and found none")
    entry = dict(date=record.date, machine=record.machine, passes={}, layers={}, convolutions={})
    for operation, beginnings in PASSES.items():
        for dtype in DTYPES:
            cases = [
                by_backend(result)
                for result in passes
                if result["facts"]["dtype"] == dtype
                and result["facts"]["layout"] == "channels last"
                and result["facts"]["name"].startswith(tuple(beginnings))
            ]
            if cases and (row := comparison(cases)):
                entry["passes"][f"{operation} {measured.name_of(DTYPES[dtype])}"] = row
    layers = {}
    for result in convolutions:
        facts, seconds = result["facts"], by_backend(result)
        inputs, outputs, side, size, stride = facts["layer"]
        shape = (facts["batch"], inputs, side, side), (outputs, inputs, size, size)
        dtype, layer = measured.name_of(DTYPES[facts["dtype"]]), measured.layer(shape, stride)
        torchs, quicker = seconds.pop(TORCH), {}
        for backend, own in seconds.items():
            row = dict(torch=_rounded(ratio(torchs, own)), pixels=measured.pixels(shape, stride))
            entry["convolutions"][f"{backend} {MAPS[facts['map']]} {dtype} {layer}"] = row
            quicker[backend] = own if measured.is_faster(row) else torchs
        layers.setdefault((f"{dtype} {layer}", measured.pixels(shape, stride)), []).append((quicker, torchs))
    for (name, pixels), maps in layers.items():
        backends = {backend for quicker, _ in maps for backend in quicker}
        # A backend without a kernel for a map leaves it to torch.
        cases = [{backend: quicker.get(backend, torchs) for backend in backends} for quicker, torchs in maps]
        if row := comparison(cases):
            entry["layers"][name] = row | dict(pixels=pixels)
    return entry


def by_backend(result):
    """Return seconds by round of a result, under the name of the backend that "this library" was."""
    return {result["facts"]["backend"] if name == OWN else name: times for name, times in result["seconds"].items()}


def comparison(cases):
    """Return {fastest, others} of the backends that ran all of some cases, or None for a single one.

    Args:
        cases: dicts of seconds by round, by backend.
    """
    backends = sorted(set.intersection(*map(set, cases)))
    if len(backends) < 2:
        return None
    medians = {backend: [statistics.median(case[backend]) for case in cases] for backend in backends}
    best = min(backends, key=lambda backend: sum(medians[backend]))
    others = {
        backend: total([ratio(case[backend], case[best]) for case in cases], medians[best])
        for backend in backends
        if backend != best
    }
    return dict(
        fastest=best if all(other.low > 1 for other in others.values()) else None,
        others={backend: _rounded(other) for backend, other in others.items()},
    )


def ratio(times, reference):
    """Return the Ratio of two lists of seconds by round."""
    return summarize([a / b for a, b in zip(times, reference, strict=True)])


def total(ratios, weights):
    """Return the Ratio of sums, from those of their terms: as far as all their intervals can be off together."""
    return Ratio(
        *(sum(weight * value for weight, value in zip(weights, values)) / sum(weights) for values in zip(*ratios))
    )


def _rounded(ratio):
    return [round(value, 4) for value in ratio]


if __name__ == "__main__":
    main()
