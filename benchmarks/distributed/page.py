"""Write docs/scaling.md from what ``python -m benchmarks.distributed`` recorded, and a calculation for GPUs.

python -m benchmarks.distributed.page benchmarks/results/distributed.json [--out docs]
"""

import argparse
import json
import shlex
import statistics
from pathlib import Path

from benchmarks.distributed.calculation import calculation
from benchmarks.harness.table import markdown, seconds_text
from benchmarks.harness.timing import summarize
from cdn.training.profile import PHASES

ALL, ONE, TWO = "one process, all cores", "one process, one core", "two processes, a core each"
HEAD = """# Scaling

<!-- Written by: {command} -->
Written by `{command}`, not by hand; measured by `python -m benchmarks.distributed --out {record}`.

How a step is divided over processes is told in [distributed.md](distributed.md). Here is what that costs.

{machine}, torch {torch}, Python {python}, {capability} kernels, {date}, commit `{commit}`.
Every case is a training of its own, {rounds} rounds in random order; given are medians over the rounds of medians over
steps, and for ratios the interval that holds the true one with 95 % probability. Images are random numbers.
"photographs" is the recipe of CIFAR-10 at a batch of {photographs}, "digits" that of the digits, whose steps are
recorded, so that nothing is exchanged beside them."""
EXCHANGED = """## What a step exchanges

The gradient once, 4 bytes for each parameter, in buckets of 8 MiB, whatever the batch. A ring of N processes sends
2 (N - 1) / N times that from each. Two exchanges of some bytes come with it."""
MEASURED = """## Measured

"Waits" is what is left of the exchange when the last sweep has ended, and "hidden" how long the exchange had been going
on by then. Hosts are network namespaces with a link of that rate and delay (one way) between them; what an all-reduce
takes there is in the last columns."""
ACCOUNT = """## Where the difference comes from

A step by phase, in steps that are timed phase by phase. Each of two processes updates all weights and their average,
with one core, where one process has two for it ("optimizer"; the orthogonalizations of Muon are divided). Gloo adds
gradients up on the cores that the last sweep runs on ("backward"), and a sweep over half of the images pays as much for
the transforms of its filters as one over all."""
RECOVERY = """## A host that loses its process

Two agents of torchrun met by c10d, each on a host of its own, trained {steps} steps of the digits (width 8). After step
{killed_after} a process of the second host was killed (SIGKILL). The agents ended with status {statuses} after another
{seconds:.0f} s; the weights differ from those of one process, never stopped, by {distance:.1e} of their norm at most.
The run said that it went on {said}."""


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="JSON")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    args = parser.parse_args(argv)
    path = args.out / "scaling.md"
    path.write_text(page(args.record))
    print(path)


def page(record):
    """Return the page as Markdown, of the path of a record."""
    try:
        found = json.loads(record.read_text())
        problems, about = found["problems"], found["machine"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{record}: not what python -m benchmarks.distributed wrote: {error}") from None
    command = shlex.join(["python", "-m", "benchmarks.distributed.page", str(record)])
    parts = [
        HEAD.format(
            command=command,
            record=record,
            machine=f"{about['device']}, {about['cores']} cores",
            date=found["date"][:10],
            rounds=found["rounds"],
            photographs=problems["photographs"][ONE][0][0]["images"],
            **{name: about[name] for name in ("torch", "python", "capability", "commit")},
        ),
        EXCHANGED,
        _exchanged(problems),
        MEASURED,
        *(f"### {name.capitalize()}\n\n{_measured(cases)}" for name, cases in problems.items()),
        ACCOUNT,
        *(f"### {name.capitalize()}\n\n{_account(cases)}" for name, cases in problems.items()),
    ]
    if found["recovery"]:
        told = found["recovery"]
        said = " and ".join("from step" + line.rpartition("from step")[2] for line in told["said"])
        parts.append(RECOVERY.format(**told | dict(said=said, statuses=" and ".join(map(str, told["statuses"])))))
    parts.append(calculation(problems["photographs"][ONE][0][0]["parameters"], _hideable(problems["photographs"])))
    return "\n\n".join(parts) + "\n"


def _exchanged(problems):
    rows = [["recipe", "parameters", "gradient", "sent by each of 2", "of 8", "of 256"], ["---"] * 6]
    for name, cases in problems.items():
        count = cases[ONE][0][0]["parameters"]
        sent = [f"{2 * (n - 1) / n * 4 * count / 1e6:.1f} MB" for n in (2, 8, 256)]
        rows.append([name, f"{count:,}", f"{4 * count / 1e6:.1f} MB", *sent])
    return markdown(rows)


def _median(rounds, pick):
    """Return the median over rounds of what the slowest process has."""
    values = [max(pick(process) for process in of_processes) for of_processes in rounds]
    return statistics.median(values)


def _measured(cases):
    sums = list(cases[TWO][0][0]["link"])
    header = ["", "step", "images/s", "times one process, all cores", "times one process, one core", "waits", "hidden"]
    rows = [
        [*header, "Muon divided", *(f"all-reduce, {name}" for name in sums)],
        ["---"] * (len(header) + 1 + len(sums)),
    ]
    for name, rounds in cases.items():
        step = _median(rounds, lambda process: process["step"])
        several = len(rounds[0]) > 1
        waits = _ms(_median(rounds, lambda process: process["phases"].get("exchange", 0.0))) if several else "-"
        hidden = _ms(_median(rounds, lambda process: process["window"] or 0.0)) if several else "-"
        link = [
            seconds_text(_median(rounds, lambda p, size=size: p["link"][size])) if several else "-" for size in sums
        ]
        divided = [of_processes[0]["muon_divided"] for of_processes in rounds]
        told = "-" if None in divided else f"in {sum(divided)} of {len(divided)} rounds"
        ratios = [_speed(cases[other], rounds) if other != name else "1" for other in (ALL, ONE)]
        rows.append([name, _ms(step), f"{rounds[0][0]['images'] / step:.0f}", *ratios, waits, hidden, told, *link])
    return markdown(rows)


def _speed(base, rounds):
    """Return how many times as many images a second a case has, as a Ratio within the rounds."""
    slowest = lambda of_processes: max(process["step"] for process in of_processes)
    return summarize([slowest(one) / slowest(other) for one, other in zip(base, rounds)]).digits


def _account(cases):
    compared = [ALL, ONE, TWO]
    rows = [["phase", *compared], ["---"] * (1 + len(compared))]
    for phase in (*PHASES, "step"):
        times = [_median(cases[name], lambda process: process["phases"].get(phase, 0.0)) for name in compared]
        if any(times):
            rows.append([phase, *map(_ms, times)])
    return markdown(rows)


def _hideable(cases):
    """Return the share of a step during which an exchange went on beside the last sweep."""
    return _median(cases[TWO], lambda process: process["window"]) / _median(cases[TWO], lambda process: process["step"])


def _ms(seconds):
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{1e3 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
