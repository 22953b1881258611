"""The benchmarks record what they measured, and the table, the page and the comparison are made of that.

Of a record that is made here, and of one that a smoke run of the benchmarks wrote:

    pytest benchmarks --benchmark-only --smoke --benchmark-json smoke.json
    SMOKE_RECORD=smoke.json pytest -m imitated tests/benchmarks/test_benchmark_commands.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import compare, page, passes
from benchmarks.harness.record import check
from benchmarks.harness.table import summary
from cdn_kernels.backends import cpu
from tests.benchmarks.records import OPERATIONS, write

SMOKE_RECORD = os.environ.get("SMOKE_RECORD")
of_a_smoke_run = [
    pytest.mark.imitated,
    pytest.mark.skipif(
        SMOKE_RECORD is None,
        reason="SMOKE_RECORD names no FILE that was written by: pytest benchmarks --benchmark-only --smoke "
        "--benchmark-json FILE",
    ),
]
# What takes long, and what only runs with --full.
NOT_IN_A_SMOKE_RUN = {"joint step, all peers", "import", "residual + GELU + norm", "first step", "build"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of a run that is made here."""
    return write(tmp_path_factory.mktemp("run") / "run.json")


@pytest.fixture(params=["made here", pytest.param("smoke run", marks=of_a_smoke_run)])
def run(request):
    """The file of a run."""
    return request.getfixturevalue("made") if request.param == "made here" else Path(SMOKE_RECORD).absolute()


def results_of(file):
    return [benchmark["extra_info"] for benchmark in json.loads(file.read_text())["benchmarks"]]


def test_the_table_shows_the_library_its_peers_the_floor_and_memory(run):
    printed = "\n".join(summary(results_of(run)))
    for text in (
        "this library",
        "eager, channels last",
        "times the floor",
        "peak memory",
        "floor: copy",
        "floor: matrix product or convolution",
        "threads",
    ):
        assert text in printed


def test_the_record_says_what_was_measured_on_what(run):
    results = results_of(run)
    assert len(results) > 12
    for result in results:
        check(result)


@pytest.mark.parametrize("run", [pytest.param("smoke run", marks=of_a_smoke_run)], indirect=True)
def test_a_smoke_run_has_every_kind_of_case(run):
    needed = set(OPERATIONS) - NOT_IN_A_SMOKE_RUN
    if cpu.MISSING:
        needed.remove("convolution")
    assert {result["facts"]["operation"] for result in results_of(run)} >= needed


def test_a_record_that_lacks_something_is_refused(made):
    complete = results_of(made)[0]
    for field, value, sentence in (
        ("facts", {}, "no operation"),
        ("seconds", {"eager": [1.0]}, "the library does not come first"),
        ("machine", {}, "the machine has no "),
        ("command", "", "does not measure it again"),
        ("ratios", {"eager": (1.0, 1.1, 1.2)}, "does not hold 1.0"),
        ("refused", {"eager": "no comparison: values differ"}, "eager: no comparison: values differ"),
    ):
        with pytest.raises(AssertionError, match=sentence):
            check(complete | {field: value})
    check(complete | dict(refused={"JAX": "RuntimeError: it is not installed"}))


def test_the_page_is_made_of_a_record(run, tmp_path, capsys):
    page.main([str(run), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    measured = {result["facts"]["operation"] for result in results_of(run)}
    for section in page.SECTIONS:
        assert (f"## {section.title}" in text) == bool(measured & set(section.operations)), section.title
    assert "images/scaling-batch.png" in text and (tmp_path / "images" / "scaling-batch.png").exists()
    assert f"{len(results_of(run))} cases, 1 plots" in capsys.readouterr().out


def test_the_page_has_no_section_of_what_was_not_measured(made, tmp_path):
    file, record = tmp_path / "run.json", json.loads(made.read_text())
    record["benchmarks"] = [b for b in record["benchmarks"] if b["extra_info"]["facts"]["operation"] != "epoch"]
    file.write_text(json.dumps(record))
    page.main([str(file), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    assert "## A whole epoch" not in text and "## Cold costs" in text


def test_a_run_compared_with_itself_changed_nothing(run, capsys):
    compare.main([str(run)] * 2)
    printed = capsys.readouterr().out
    assert "0 gained, 0 lost" in printed and "Careful" not in printed


def test_a_change_beyond_the_spread_is_seen(run, tmp_path, capsys):
    new = json.loads(run.read_text())
    new["machine_info"]["cdn"]["torch"] = "other"
    changed = next(b["extra_info"] for b in new["benchmarks"] if b["extra_info"]["ratios"])
    changed["ratios"] = {name: 3 * [2 * high] for name, (_, _, high) in changed["ratios"].items()}
    (tmp_path / "new.json").write_text(json.dumps(new))
    compare.main([str(run), str(tmp_path / "new.json")])
    printed = capsys.readouterr().out
    assert f"{len(changed['ratios'])} gained, 0 lost" in printed and "torch was" in printed
    compare.main([str(tmp_path / "new.json"), str(run)])
    assert f"{len(changed['ratios'])} lost" in capsys.readouterr().out


def test_records_of_one_machine_are_merged(run, tmp_path):
    other = json.loads(run.read_text())
    first = other["benchmarks"][0]["extra_info"]
    first["machine"]["commit"] = "0123456789ab"
    (tmp_path / "other.json").write_text(json.dumps(other))
    page.main([str(run), str(tmp_path / "other.json"), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    assert "commit `0123456789ab`, `" in text and text.count(f"| {first['case']} |") == 1


def test_another_machine_has_tables_of_its_own(run, tmp_path):
    other = json.loads(run.read_text())
    other["machine_info"]["cdn"]["device"] = "Another"
    other["benchmarks"] = [b for b in other["benchmarks"] if b["extra_info"]["facts"]["operation"] != "epoch"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    page.main([str(run), str(tmp_path / "other.json"), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    first = other["benchmarks"][0]["extra_info"]
    assert text.count(f"| {first['case']} |") == 2
    assert "\nAnother, " in text and "a whole epoch (`test_epoch.py`) on Another, " in text


def test_records_of_several_versions_are_refused(run, tmp_path):
    other = json.loads(run.read_text())
    other["machine_info"]["cdn"]["torch"] = "0.1"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="expected runs of the same versions, got torch"):
        page.main([str(run), str(tmp_path / "other.json"), "--out", str(tmp_path)])


@pytest.mark.parametrize("content, sentence", [(None, "cannot be read"), ("[]", "not what pytest"), ("x", "not what")])
def test_rubbish_is_refused_with_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    for command in (page.main, lambda args: compare.main(args * 2)):
        with pytest.raises(SystemExit, match=sentence):
            command([str(file)])


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
def test_a_wrong_pass_is_seen():
    case = passes.make_pass("gelu tangent", cpu, (2, 16, 5, 5), torch.float32, torch.channels_last)
    assert passes.difference(case) is None
    wrong = case._replace(run=lambda: (case.run(), case.writes[0][:1, :1, :1, :1].add_(1)))
    assert "off by" in passes.difference(wrong)
