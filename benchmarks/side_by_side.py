"""Run tests in several processes at once: those of kernels spend most of their time in compilers, on one core each.

    python -m benchmarks.side_by_side --parts 8 --log DIR/tests -- -q tests/kernels

Every process takes its share of the tests and writes a log of its own, DIR/tests-1.log and so on. Printed is how each
ended, and all that one prints that fails.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.harness.checkout import environment

NO_TESTS = 5  # pytest's status where a process has no test to run


def main(argv=None):
    """Run the command; return 1 if any test failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", type=int, required=True, metavar="N", help="processes")
    parser.add_argument("--log", type=Path, required=True, metavar="PREFIX", help="of the logs")
    parser.add_argument("tests", nargs="+", help="arguments of pytest")
    args = parser.parse_args(argv)

    def run(part):
        log = args.log.with_name(f"{args.log.name}-{part}.log")
        words = ["-m", "pytest", "-p", "benchmarks.harness.parts", "--part", f"{part}/{args.parts}", *args.tests]
        with log.open("w") as file:
            status = subprocess.run(
                [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=environment()
            ).returncode
        return part, status, log.read_text()

    failed = False
    with ThreadPoolExecutor(args.parts) as pool:
        for done in as_completed([pool.submit(run, part) for part in range(1, args.parts + 1)]):
            part, status, text = done.result()
            bad = status not in (0, NO_TESTS)
            failed |= bad
            last = text.strip().rpartition("\n")[2] or f"it says nothing, and ends with {status}"
            print(f"part {part} of {args.parts}: {text if bad else last}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
