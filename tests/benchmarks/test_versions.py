"""The runs with other versions are counted, recorded, and shown on a page that no one writes by hand."""

import json

import pytest

from benchmarks import versions

REPORT = """<testsuites><testsuite tests="5">
<testcase classname="tests.a" name="fine"/><testcase classname="tests.a" name="fine too"/>
<testcase classname="tests.a" name="wrong"><failure message="no"/></testcase>
<testcase classname="tests.b" name="broken"><error message="no"/></testcase>
<testcase classname="tests.b" name="elsewhere"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def record(python, torch, **fields):
    return dict(
        dict(
            date="2030-01-02",
            commit="abc",
            lowest=False,
            command="python -m pytest",
            python=python,
            torch=torch,
            cuda=None,
            gpu=None,
            packages=dict(triton="3.6.0", numpy="2.0.0"),
            passed=5,
            failed=0,
            skipped=1,
            failures=[],
            reasons={"no GPU": 1},
        ),
        **fields,
    )


def test_a_report_is_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = versions.read_report(tmp_path / "report.xml")
    assert found == (2, 2, 1, ["tests.a::wrong", "tests.b::broken"], {"no GPU": 1})


def test_the_last_run_of_each_pair_is_shown_in_order():
    page = versions.page(
        [
            record("3.12.1", "2.13.0+cpu", passed=11, failed=3, failures=["tests.a::wrong"]),
            record("3.9.0", "2.14.1+cu130", cuda="13.0", passed=22),
            record("3.12.4", "2.13.0+cpu", passed=33),
            record("3.12.4", "2.13.0+cpu", lowest=True, passed=44),
        ]
    )
    rows = [line for line in page.splitlines() if line.startswith("| 3")]
    assert [row.split(" | ")[5] for row in rows] == ["22", "33", "44"]
    assert "2.14.1, CUDA 13.0" in rows[0] and "2.13.0, CPU only" in rows[1] and "lowest" in rows[2]
    assert "tests.a::wrong" not in page and "* no GPU" in page
    assert "Not run: Python 3.10, Python 3.11, Python 3.13, Python 3.14." in page


def test_failures_are_named():
    assert "* Python 3.10.1, torch 2.11.0: tests.a::wrong" in versions.page(
        [record("3.10.1", "2.11.0", failed=1, failures=["tests.a::wrong"])]
    )


@pytest.mark.parametrize("passes", [True, False])
def test_a_run_is_recorded(tmp_path, monkeypatch, passes):
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    assert {passes}\n")
    monkeypatch.setattr(versions, "RECORDS", versions.ROOT / tmp_path / "records/versions.jsonl")
    monkeypatch.setattr(versions, "PAGE", tmp_path / "versions.md")
    monkeypatch.setattr(versions, "commit", lambda: "abc")
    with pytest.raises(SystemExit) as stopped:
        versions.main(["run", "--", "-p", "no:cacheprovider", str(tmp_path / "test_it.py")])
    (line,) = (tmp_path / "records/versions.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert stopped.value.code == (0 if passes else 1)
    assert (found["passed"], found["failed"], found["skipped"]) == ((1, 0, 0) if passes else (0, 1, 0))
    assert (tmp_path / "versions.md").read_text() == versions.page([found])


def test_the_page_is_what_the_records_give():
    assert versions.PAGE.read_text() == versions.page(versions.read_records())
