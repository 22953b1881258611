"""setup.py beyond this machine: other compilers and processors, as far as they can be imagined here."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
from setuptools.errors import CompileError

from tests.packaging.project import ROOT

X86_ONLY = ("avx2", "avx512", "avx512bf16", "amx")


@pytest.fixture
def setup(monkeypatch):
    """Return a function that reads setup.py for a platform, without building anything."""

    def read(platform):
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("_PYTHON_HOST_PLATFORM", platform)
        monkeypatch.setattr(setuptools, "setup", lambda **options: None)
        return SimpleNamespace(**runpy.run_path("setup.py"))

    return read


@pytest.mark.skipif(sys.platform == "win32", reason="the name of the platform is overridden on POSIX alone")
@pytest.mark.parametrize(
    "platform, x86",
    [("linux-x86_64", True), ("linux-aarch64", False), ("macosx-11.0-arm64", False), ("macosx-11-universal2", False)],
)
def test_sources_are_those_of_the_processor_built_for(setup, platform, x86):
    sources = {Path(path).stem for path in setup(platform).sources()}
    assert {
        "dispatch",
        "threads",
        "passes_scalar",
        "winograd_scalar",
        "float32_scalar",
        "convolution_amx_emulated",
    } <= sources
    assert {name for name in sources if name.endswith(X86_ONLY)} == (
        {"noise_avx2", "noise_avx512", "passes_avx2", "passes_avx512", "passes_avx512bf16"}
        | {"convolution_amx", "convolution_avx512bf16", "winograd_avx2", "winograd_avx512", "winograd_avx512bf16"}
        | {"float32_avx2", "float32_avx512"}
        if x86
        else set()
    )


def test_msvc_leaves_the_library_out_with_a_warning(setup, monkeypatch, capsys):
    module = setup("linux-x86_64")
    build = module.BuildLibrary(setuptools.Distribution())
    build.compiler = SimpleNamespace(compiler_type="msvc")
    library = SimpleNamespace(name="cdn_kernels._cpu")
    monkeypatch.delenv("CDN_CPU", raising=False)
    build.build_extension(library)
    assert "warning: the CPU kernels were not built" in capsys.readouterr().out
    monkeypatch.setenv("CDN_CPU", "1")
    with pytest.raises(CompileError, match="GCC and Clang"):
        build.build_extension(library)
