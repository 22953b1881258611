"""Memory that is kept between steps."""

import os
import platform
import subprocess
import sys

import pytest

from tests.kernels.fresh import printed_by

SCRIPT = """
import resource, torch, cdn_kernels
kept = cdn_kernels.keep_pages()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a, b = torch.ones(2**23), torch.ones(2**22)
    del a, b
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_buffers_of_earlier_steps_are_reused_without_page_faults():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = map(int, done.stdout.split())
    assert kept and faults < 32  # of 12,288 pages, once the heap has its shape


def test_the_environment_has_the_last_word():
    code = "import cdn_kernels; print(cdn_kernels.keep_pages())"
    assert printed_by(code, MALLOC_TRIM_THRESHOLD_="131072") == "False\n"
