"""Tests that several processes share all run, once, and what fails is seen."""

import re

import pytest

from benchmarks import side_by_side

TESTS = """
import pytest
@pytest.mark.parametrize("n", range(3))
def test_number(n):
    open({folder!r} + "/ran", "a").write(str(n))
    assert n != {bad}, "that is wrong"
"""


@pytest.fixture
def share(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins that are not needed take longer than the tests
    monkeypatch.chdir(tmp_path)  # of a project with no settings for pytest
    (tmp_path / "pytest.ini").write_text("[pytest]")

    def run(parts, bad=None):
        (tmp_path / "test_some.py").write_text(TESTS.format(folder=str(tmp_path), bad=bad))
        return side_by_side.main(["--parts", str(parts), "--log", str(tmp_path / "log"), "--", "-q", "test_some.py"])

    return run


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_test_runs_once(share, tmp_path, capsys, parts):
    assert share(parts) == 0
    assert sorted((tmp_path / "ran").read_text()) == list("012")
    passed = re.findall(r"part \d of \d: (\d+) passed", capsys.readouterr().out)
    assert sum(map(int, passed)) == 3 and len(passed) == min(parts, 3)


def test_a_failure_is_shown_and_kept(share, tmp_path, capsys):
    assert share(2, bad=1) == 1
    assert "that is wrong" in capsys.readouterr().out
    assert sum("that is wrong" in log.read_text() for log in tmp_path.glob("log-*.log")) == 1
    assert sorted((tmp_path / "ran").read_text()) == list("012")
