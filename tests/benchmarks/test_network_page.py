"""The page of networks of all kinds is made of their table and of records, and says what was not measured."""

import json

import pytest

from benchmarks import network_page
from benchmarks.harness.checkout import ROOT
from benchmarks.networks import NETWORKS
from cdn_kernels import machine

PAGE = ROOT / "docs" / "networks.md"


def record(path, threads, facts=None, **ratios):
    """Write a record with some ratios by size of the PINN, and more facts."""
    results = [
        dict(
            case=f"PINN, {size}",
            facts=dict(operation="network", network="PINN", size=size, package=None, version=None, **facts or {}),
            seconds={
                "this library, channels last": [9.0, 9.0, 9.0],
                "this library, contiguous": [1.0, 1.0, 1.0],
                "eager, channels last": [9.0, 9.0, 9.0],
                "eager, contiguous": ratio,
            },
            ratios={"eager, contiguous": [8.0, 8.0, 8.0]},  # to the library in one layout
            floor={},
            peak_bytes={"this library, contiguous": 2**21, "eager, contiguous": 2**22},
            refused={},
        )
        for size, ratio in ratios.items()
    ]
    run = dict(
        benchmarks=[dict(fullname=f"{threads}/{i}", extra_info=result) for i, result in enumerate(results)],
        datetime="2000-01-01T00:00:00+00:00",
        machine_info=dict(cdn=machine.describe("cpu") | dict(threads=threads)),
    )
    path.write_text(json.dumps(run))
    return path


def test_records_of_several_numbers_of_threads_become_one_table(tmp_path):
    one = record(tmp_path / "one.json", 1, small=(1.5, 1.25, 1.75), larger=(2, 1.9, 2.1))
    two = record(tmp_path / "two.json", 2, small=(0.98, 0.9, 1.1))
    network_page.main([str(one), str(two), "--out", str(tmp_path)])
    text = (tmp_path / "networks.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| PINN")]
    cells = "1.50 (1.25 to 1.75)", "no difference seen (0.90 to 1.10)", "2.00 (1.90 to 2.10)", "-", "2 MiB / 4 MiB"
    assert row == f"| PINN | - | {' | '.join(cells)} |"
    assert "small, threads: 1 | small, threads: 2 | larger, threads: 1 | larger, threads: 2" in text
    assert "* small, threads: 1, of PINN; larger, threads: 1, of PINN: " in text
    assert "* small, threads: 2, of PINN: " in text
    assert "Not measured:" in text and "PINN" not in text.partition("Not measured:")[2].partition("\n")[0]


def test_of_two_records_of_a_case_the_last_counts_and_the_other_is_not_named(tmp_path):
    paths = [record(tmp_path / f"{n}.json", 1, small=(n, n, n)) for n in (2, 3)]
    text = network_page.page(paths)
    assert "| 3.00 (3.00 to 3.00) |" in text and text.count("\n* small, threads: 1, of PINN: ") == 1


def test_the_page_says_how_a_record_was_timed(tmp_path):
    found = []
    for facts in ({}, dict(clock="processor"), dict(in_turn="calls of one process")):
        text = network_page.page([record(tmp_path / "one.json", 1, facts, small=(1, 1, 1))])
        (line,) = [line for line in text.splitlines() if line.startswith("* small, threads: 1, of PINN: ")]
        found.append(line.rpartition("`, ")[2])
    assert found == [
        "seconds of the clock",
        "seconds of the processor, beside other work",
        "seconds of the clock, step by step",
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_has_lines_that_run(name):
    lines = NETWORKS[name].lines()
    compile(lines, name, "exec")
    assert ("cdn_kernels.score_matching_step(" in lines) != ("cdn_kernels.first_order(" in lines)
    assert "return Call" not in lines and "return Inside" not in lines


def test_the_page_is_the_one_that_was_written():
    command = PAGE.read_text().partition("<!-- Written by: ")[2].partition(" -->")[0].split()
    records = [ROOT / name for name in command[3:]]
    assert PAGE.read_text() == network_page.page(records).replace(f"{ROOT}/", "")
