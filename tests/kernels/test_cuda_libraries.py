"""The libraries that tests compile: once for every state of their sources, by one process, whole or not at all."""

import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernels import build_cache, cuda_libraries

needs_compiler = pytest.mark.skipif(cuda_libraries.COMPILER is None, reason="no C++ compiler")


@needs_compiler
def test_every_source_and_header_changes_the_name_of_the_emulated_library(tmp_path):
    for folder in ("csrc", "tests/kernels/cuda_emulation"):
        shutil.copytree(cuda_libraries.ROOT / folder, tmp_path / folder)
    name = cuda_libraries.emulated_key()
    assert cuda_libraries.emulated_key(tmp_path) == name
    sources = [file for ending in ("cu", "cpp", "h") for file in tmp_path.rglob(f"*.{ending}")]
    sources = [file for file in sources if "cpu" not in file.parts]
    assert len(sources) > 20
    for source in sources:
        text = source.read_text()
        source.write_text(text + "\n")
        assert cuda_libraries.emulated_key(tmp_path) != name, source
        source.write_text(text)
    assert cuda_libraries.emulated_key(tmp_path) == name


@needs_compiler
@pytest.mark.parametrize(
    "name, value",
    [
        ("COMPILER", sys.executable),
        ("version", lambda compiler: "another"),
        ("FLAGS", [*cuda_libraries.FLAGS, "-O2"]),
        ("contraction", lambda source: ["-ffp-contract=off"]),
    ],
)
def test_compilers_and_flags_change_it_too(monkeypatch, name, value):
    before = cuda_libraries.emulated_key()
    monkeypatch.setattr(cuda_libraries, name, value)
    assert cuda_libraries.emulated_key() != before


def written(folder):
    (folder / "part.o").write_text("part")
    (folder / "whole.so").write_text("whole")
    return folder / "whole.so"


def test_a_broken_build_leaves_nothing_behind(tmp_path):
    def broken(folder):
        written(folder)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        build_cache.once(tmp_path, "a.so", broken)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert build_cache.once(tmp_path, "a.so", written).read_text() == "whole"
    assert {file.name for file in tmp_path.iterdir()} == {"a.so", "lock"}


def test_what_is_there_or_being_built_is_not_built_again(tmp_path):
    started, builds = threading.Event(), []

    def build(folder):
        builds.append(folder)
        started.set()
        time.sleep(0.2)  # in which the other comes, who waits, or else would build too
        return written(folder)

    ask = lambda: build_cache.once(tmp_path, "a.so", build).read_text()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask)
        assert started.wait(60)
        assert [ask(), first.result(), ask()] == ["whole"] * 3
    assert len(builds) == 1
