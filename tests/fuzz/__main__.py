"""Give commands and functions malformed images, archives, checkpoints, configurations and arguments, and count faults.

    python -m tests.fuzz --cases 1000 --seed 0

Every case damages files of a seed by its number, runs in a process of its own, and is a fault where it ends in anything
but success or the library's own sentence, does not end, or leaves a file that is not whole. Prints a table, and writes
the record with --record FILE. Exit status 1 if there are faults.
"""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import PIL
import safetensors

from cdn_kernels import machine
from tests.fuzz.cases import KINDS
from tests.fuzz.judge import FAULTS, REFUSED, WELL, judge, prepare


def case(arguments):
    number, seed, kinds, seconds = arguments
    with tempfile.TemporaryDirectory() as folder:
        return judge(kinds[number % len(kinds)], seed, number, Path(folder), seconds)


def run(numbers, seed, kinds, seconds, processes):
    """Yield the Verdict of every number, in order."""
    todo = [(number, seed, kinds, seconds) for number in numbers]
    with ProcessPoolExecutor(processes, initializer=prepare) as pool:
        yield from pool.map(case, todo)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="NUMBER", help="run these cases, and show what they said"
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="of a processor after which a case hangs (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    # Now, as files may change while it runs.
    tried_on = machine.describe("cpu") | dict(pillow=PIL.__version__, safetensors=safetensors.__version__)
    start, counts = time.perf_counter(), {kind: Counter() for kind in args.kinds}
    for verdict in run(args.only or range(args.cases), args.seed, args.kinds, args.seconds, args.processes):
        counts[verdict.kind][verdict.outcome] += 1
        if verdict.outcome in FAULTS or args.only:
            print(
                f"{verdict.number}: {verdict.kind}, {verdict.what!r}: {verdict.outcome}: {verdict.shown}\n", flush=True
            )
    outcomes = (WELL, REFUSED, *FAULTS)
    print(f"{'kind':<15}{'cases':>8}" + "".join(f"{outcome:>14}" for outcome in outcomes))
    for kind, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind:<15}{count.total():>8}" + "".join(f"{count[outcome]:>14}" for outcome in outcomes))
    if args.record:
        record = dict(
            command=shlex.join(["python", "-m", "tests.fuzz", *sys.argv[1:]]),
            date=datetime.date.today().isoformat(),
            machine=tried_on,
            seconds=round(time.perf_counter() - start),
            kinds={kind: {outcome: count[outcome] for outcome in outcomes} for kind, count in counts.items()},
        )
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(count[fault] for count in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
