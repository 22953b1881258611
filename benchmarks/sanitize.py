"""Let compute-sanitizer watch a few tests of the CUDA kernels: wild and uninitialized addresses, and races of threads.

    python -m benchmarks.sanitize --out DIR

It is looked for beside nvcc and on the PATH. Where there is none, or where it cannot watch a program on this machine,
a line says so, and that is no failure; an error that it finds is one, and so is a test that fails under it.
"""

import argparse
import os
import runpy
import shutil
import sys
from pathlib import Path

from benchmarks.harness.checkout import ROOT, environment
from cdn.cli.process import run_logged

TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}  # what torch asks of a driver may be refused
FOUND = 86  # the exit status that we ask for where it finds errors
LIMIT, LATE = 150, 124  # seconds of a tool, and the exit status of what took longer
PROBE = ["-c", "import torch; print(float(torch.ones(8, device='cuda').sum()))"]
# Every kernel of one type, on small images.
TESTS = [
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "tests/kernels/test_cuda_kernels.py",
    "tests/kernels/test_cuda_passes.py",
    "tests/kernels/test_cuda_convolution.py",
    "-m",
    "gpu",
    "-k",
    "bfloat16 and (every_output or gelu_is_as or noise_is or denoising_is or maps_are)",
]


def main(argv=None):
    """Run the command; return 1 if errors were found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sanitize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the logs")
    args = parser.parse_args(argv)
    sanitizer = find()
    if sanitizer is None:
        print("sanitize: not done: there is no compute-sanitizer, neither beside nvcc nor on the PATH")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    wrong = [watch(sanitizer, tool, args.out) for tool in TOOLS]
    return int(any(wrong))


def find():
    """Return the path of compute-sanitizer, None if it is nowhere."""
    nvcc = runpy.run_path(ROOT / "csrc/cuda/build.py")["find_nvcc"]()
    beside = [str(Path(nvcc).resolve().parent), str(Path(nvcc).parent)] if nvcc else []
    return shutil.which("compute-sanitizer", path=os.pathsep.join([*beside, os.environ.get("PATH", "")]))


def watch(sanitizer, tool, folder):
    """Run the tests under a tool; return whether something is wrong with them."""
    status, text = _run(sanitizer, tool, PROBE, folder / f"sanitize-{tool}.log")
    if status or "SUMMARY" not in text:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
        print(f"sanitize: {tool}: not done: compute-sanitizer cannot watch a program here: {last.strip('= ')}")
        return False
    status, text = _run(sanitizer, tool, TESTS, folder / f"sanitize-{tool}.log")
    if status == LATE:
        print(f"sanitize: {tool}: not done: the tests did not end within {LIMIT} seconds")
        return False
    if status == 0:
        print(f"sanitize: {tool}: no errors")
        return False
    print(f"sanitize: {tool}: " + ("errors were found" if status == FOUND else f"the tests ended with status {status}"))
    return True


def _run(sanitizer, tool, words, log):
    """Return the exit status and the output of Python under a tool."""
    limited = ["timeout", str(LIMIT)] if shutil.which("timeout") else []
    watched = [sanitizer, "--tool", tool, *TOOLS[tool], "--error-exitcode", str(FOUND), sys.executable, *words]
    # Without the cache of torch every tensor is an allocation of its own, whose ends are known.
    alone = environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return run_logged([*limited, *watched], log, cwd=ROOT, env=alone), log.read_text()


if __name__ == "__main__":
    sys.exit(main())
