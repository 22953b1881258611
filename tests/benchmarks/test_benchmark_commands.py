"""The benchmarks run, record what they measured, and the page and the comparison are made of that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compare, page, passes
from cdn_kernels.backends import cpu

ROOT = Path(__file__).parents[2]
# Of every kind of case one that is quick: with peers and floors, in this process and in others.
QUICK = (
    "test_residual or test_network_of_torch or test_overhead or (test_score and bf16) or (test_pass and tangent) "
    "or (test_operation and scale and double) or batch8 or batch32 or test_certification"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(what a smoke test of the benchmarks printed, the file it wrote)."""
    if cpu.MISSING is not None:
        pytest.skip(cpu.MISSING)
    file = tmp_path_factory.mktemp("run") / "run.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-only",
        "--smoke",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--benchmark-json",
        str(file),
        "-k",
        QUICK,
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout, file


def test_the_table_shows_the_library_its_peers_the_floor_and_memory(run):
    printed, _ = run
    for text in (
        "this library",
        "eager, channels last",
        "times the floor",
        "peak memory",
        "floor: copy",
        "floor: matrix product",
    ):
        assert text in printed


def test_the_record_says_what_was_measured_on_what(run):
    _, file = run
    benchmarks = json.loads(file.read_text())["benchmarks"]
    assert len(benchmarks) > 12
    for result in (benchmark["extra_info"] for benchmark in benchmarks):
        assert {"operation"} <= result["facts"].keys() and "this library" in result["seconds"]
        assert {"device", "threads", "torch", "triton", "cuda", "commit"} <= result["machine"].keys()
        assert result["command"].startswith('pytest "benchmarks/')
        for median, low, high in result["ratios"].values():
            assert 0 < low <= median <= high
        assert not any("no comparison" in reason for reason in result["refused"].values())


def test_the_page_is_made_of_a_record(run, tmp_path, capsys):
    page.main([str(run[1]), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    for title, *_ in page.SECTIONS:
        assert (f"## {title}" in text) == (
            title not in ("The training step", "What one would run instead", "A whole epoch")
        ), title
    assert "images/scaling-batch.png" in text and (tmp_path / "images" / "scaling-batch.png").exists()
    assert "cases, 1 plots" in capsys.readouterr().out


def test_a_run_compared_with_itself_changed_nothing(run, capsys):
    compare.main([str(run[1])] * 2)
    printed = capsys.readouterr().out
    assert "0 gained, 0 lost" in printed and "Careful" not in printed


def test_a_change_beyond_the_spread_is_seen(run, tmp_path, capsys):
    new = json.loads(run[1].read_text())
    new["machine_info"]["cdn"]["torch"] = "other"
    changed = next(b["extra_info"] for b in new["benchmarks"] if b["extra_info"]["ratios"])
    changed["ratios"] = {name: [100 * v for v in ratio] for name, ratio in changed["ratios"].items()}
    (tmp_path / "new.json").write_text(json.dumps(new))
    compare.main([str(run[1]), str(tmp_path / "new.json")])
    printed = capsys.readouterr().out
    assert f"{len(changed['ratios'])} gained, 0 lost" in printed and "torch was" in printed
    compare.main([str(tmp_path / "new.json"), str(run[1])])
    assert f"{len(changed['ratios'])} lost" in capsys.readouterr().out


def test_records_are_merged_only_from_one_machine(run, tmp_path):
    other = json.loads(run[1].read_text())
    first = other["benchmarks"][0]["extra_info"]
    first["machine"]["commit"] = "0123456789ab"
    (tmp_path / "other.json").write_text(json.dumps(other))
    page.main([str(run[1]), str(tmp_path / "other.json"), "--out", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    assert "commit `0123456789ab`, `" in text and text.count(f"| {first['case']} |") == 1
    other["machine_info"]["cdn"]["threads"] = 99
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="expected runs of one machine, got threads"):
        page.main([str(run[1]), str(tmp_path / "other.json"), "--out", str(tmp_path)])


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
