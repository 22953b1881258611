"""Compile the CUDA library with nvcc, for GPUs that need not be there.

    python csrc/cuda/build.py            cdn_kernels/_cuda.so, for all GPUs from compute capability 8.0
    python csrc/cuda/build.py 90         for those of compute capability 9.0 only

setup.py does the same on installing. It takes nothing but Python and nvcc: one shared library with a plain C interface.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = Path(__file__).parents[2] / "cdn_kernels/_cuda.so"
# A runtime that loads without a driver.
FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--cudart", "static"]
# One rounding per operation, so that the noise is that of the CPU.
UNFUSED = ["-fmad=false"]
# What is below 2^-126 becomes 0, which saves three instructions with every reciprocal.
FLUSHED = ["-ftz=true"]
OWN_FLAGS = {"noise": UNFUSED, "norm": FLUSHED, "gelu": FLUSHED, "convolution": FLUSHED}
ARCHITECTURES = ["80", "90"]
# Machine code that has instructions of this compute capability alone: products by groups of four warps.
OWN_CODE = {"90": "90a"}


def find_nvcc():
    """Return the path of nvcc: below CUDA_HOME or CUDA_PATH, on the PATH, or below /usr/local/cuda; or None."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def build(library=LIBRARY, architectures=()):
    """Compile the library.

    Args:
        library: where to write it.
        architectures: what to compile for, such as "90"; if empty, machine code for ARCHITECTURES, and for the newest
            also the portable code that drivers compile for what is newer still.

    Raises:
        FileNotFoundError: there is no nvcc.
        subprocess.CalledProcessError: nvcc failed; what it says is printed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("there is no nvcc, neither on the PATH nor below CUDA_HOME")
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    codes = [("sm", OWN_CODE.get(name, name)) for name in architectures or ARCHITECTURES]
    if not architectures:
        codes.append(("compute", ARCHITECTURES[-1]))
    names = " ".join(f"{kind}_{name}" for kind, name in codes)
    words = f"nvcc {re.search(r'release ([0-9.]+)', version).group(1)}: {names}"
    flags = [*FLAGS, f"-DCDN_CUDA_BUILD={words}"]
    if os.environ.get("CXX"):
        flags += ["-ccbin", os.environ["CXX"]]
    for kind, name in codes:
        flags += ["-gencode", f"arch=compute_{name},code={kind}_{name}"]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compiled(source):
            target = f"{folder}/{source.stem}.o"
            subprocess.run([nvcc, *flags, *OWN_FLAGS.get(source.stem, []), "-c", source, "-o", target], check=True)
            return target

        objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cu"))))
        library.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: others may run with what was there before.
        unfinished = library.with_name(f"{library.stem}.{os.getpid()}.so")
        try:
            subprocess.run([nvcc, *flags, "-shared", *objects, "-o", unfinished], check=True)
            unfinished.replace(library)
        finally:
            unfinished.unlink(missing_ok=True)


def named_architectures():
    """Return the architectures that the environment's CDN_CUDA_ARCHITECTURES names, as "90" or "80 90"."""
    return re.findall(r"\w+", os.environ.get("CDN_CUDA_ARCHITECTURES", ""))


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "architectures",
        nargs="*",
        metavar="N",
        type=int,
        help="ten times a compute capability, such as 90 (default: what CDN_CUDA_ARCHITECTURES says, "
        f"or {' and '.join(ARCHITECTURES)} and newer ones)",
    )
    names = list(map(str, parser.parse_args().architectures))
    try:
        build(architectures=names or named_architectures())
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
