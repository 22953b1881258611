"""What the stage "sanitize" says of a sanitizer that is missing, refuses, or finds something or nothing; a stand-in."""

import sys

import pytest

from benchmarks import sanitize
from benchmarks.sanitize import FOUND

# Runs the program, after which it behaves as told. The program's last word tells the tests from the probe.
STAND_IN = f"""#!{sys.executable} -S
import os, subprocess, sys, time
options, program = sys.argv[1:sys.argv.index(sys.executable)], sys.argv[sys.argv.index(sys.executable):]
assert options[0] == "--tool" and options[-2:] == ["--error-exitcode", "{FOUND}"]
behavior = os.environ["BEHAVIOR"]
if behavior == "refuse":
    sys.exit("========= Error: Device not supported. Please refer to the documentation\\n")
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
status = subprocess.run(program).returncode
if behavior == "find" and program[-1] == "tests" and options[1] == "racecheck":
    print("========= Error: Race reported between Write access and Read access", flush=True)
    status = {FOUND}
if behavior == "last" and program[-1] == "tests":
    time.sleep(60)
if behavior != "end":
    print("========= ERROR SUMMARY: some errors")
sys.exit(status)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A stand-in beside an nvcc that is none either; returns how the command ends, and what it prints."""
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    for name, text in (("nvcc", "#!/bin/sh\n"), ("compute-sanitizer", STAND_IN)):
        path = tmp_path / "cuda" / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(sanitize, "PROBE", ["-S", "-c", "print('probing')", "probe"])

    def run(behavior, capsys, tests="print('testing')"):
        monkeypatch.setenv("BEHAVIOR", behavior)
        monkeypatch.setattr(sanitize, "TESTS", ["-S", "-c", tests, "tests"])
        return sanitize.main(["--out", str(tmp_path / "out")]), capsys.readouterr().out

    return run


def test_nothing_wrong_is_said(stand_in, tmp_path, capsys):
    status, printed = stand_in("watch", capsys)
    assert status == 0 and "testing" in printed
    assert all(f"sanitize: {tool}: no errors" in printed for tool in ("memcheck", "racecheck"))
    assert "ERROR SUMMARY" in (tmp_path / "out" / "sanitize-racecheck.log").read_text()


def test_errors_fail(stand_in, capsys):
    status, printed = stand_in("find", capsys)
    assert status == 1
    assert "sanitize: memcheck: no errors" in printed and "sanitize: racecheck: errors were found" in printed


def test_tests_that_fail_under_it_fail(stand_in, capsys):
    status, printed = stand_in("watch", capsys, tests="raise SystemExit(3)")
    assert status == 1 and printed.count("the tests ended with status 3") == 2


@pytest.mark.parametrize("behavior, reason", [("refuse", "Device not supported"), ("end", "probing")])
def test_a_machine_that_refuses_is_no_failure(stand_in, capsys, behavior, reason):
    status, printed = stand_in(behavior, capsys)
    assert status == 0 and "testing" not in printed
    assert printed.count("not done: compute-sanitizer cannot watch a program here: ") == 2 and reason in printed


def test_tests_that_take_too_long_are_no_failure(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "LIMIT", 1)
    monkeypatch.setattr(sanitize, "TOOLS", {"memcheck": []})
    status, printed = stand_in("last", capsys)
    assert status == 0 and "not done: the tests did not end within 1 seconds" in printed


def test_none_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "find", lambda: None)
    assert sanitize.main(["--out", str(tmp_path / "out")]) == 0
    assert "not done: there is no compute-sanitizer" in capsys.readouterr().out


def test_it_is_found_on_the_path(tmp_path, monkeypatch):
    path = tmp_path / "compute-sanitizer"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.find() is not None
