"""The benchmark of several processes: its page, the calculation for GPUs, and the hosts that it makes."""

import json
import subprocess
import sys

import pytest

from benchmarks.distributed import page
from benchmarks.distributed.calculation import BETWEEN, COUNTS, OF_MACHINE, efficiency
from benchmarks.distributed.hosts import ADDRESSES, Link, hosts, why_not
from benchmarks.distributed.worker import PROBLEMS, trainer_of
from benchmarks.harness.checkout import ROOT
from cdn.processes import ALONE

PAGE, RECORD = ROOT / "docs" / "scaling.md", "benchmarks/results/distributed.json"


def test_the_page_is_what_its_command_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    page.main([RECORD, "--out", str(tmp_path)])
    assert (tmp_path / "scaling.md").read_text() == PAGE.read_text()


def test_what_was_not_recorded_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"a.json: not what python -m benchmarks.distributed wrote"):
        page.main([str(tmp_path / "a.json"), "--out", str(tmp_path)])


def test_ratios_are_those_of_a_round():
    rounds = lambda *steps: [[dict(step=step)] for step in steps]
    assert page._speed(rounds(2.0, 4.0, 6.0), rounds(1.0, 2.0, 3.0)).startswith("2.00 (2.00 to 2.00)")


@pytest.mark.parametrize("name", BETWEEN)
def test_the_calculation_loses_with_gpus_and_gains_by_hiding(name):
    size, link = 4 * 11_385_600, BETWEEN[name]
    shares = [efficiency(size, 0.05, count, link, 0.2) for count in COUNTS]
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < shares[0] < 1
    assert all(efficiency(size, 0.05, count, link, 0.0) < share for count, share in zip(COUNTS, shares))
    assert efficiency(size, 0.5, 256, link, 0.2) > shares[-1]


def test_one_machine_does_not_ask_what_is_between_machines():
    of_links = [efficiency(10**8, 0.05, OF_MACHINE, link, 0.1) for link in BETWEEN.values()]
    assert len(set(of_links)) == 1
    # By hand: two thirds of 0.3 GB at 300 GB/s, 36 buckets of 2 log2(8) messages of 5 us, and two alone.
    by_hand = 0.05 / (0.05 + 2 * 7 / 8 * 3e8 / 300e9 + (36 + 2) * 6 * 5e-6)
    assert efficiency(3 * 10**8, 0.05, OF_MACHINE, next(iter(BETWEEN.values())), 0.0) == pytest.approx(by_hand)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_timed_trains(problem):
    trainer = trainer_of(problem, ALONE, width=8, batch_size=4)
    assert float(trainer.advance()["loss"]) > 0 and trainer.step == 1


TALK = """
import socket, sys, time
_, role, address = sys.argv
if role == "serve":
    connection, _ = socket.create_server((address, 5000)).accept()
    connection.sendall(connection.recv(1))
    total = 0
    while part := connection.recv(1 << 20):
        total += len(part)
    print(total)
else:
    for _ in range(100):
        try:
            connection = socket.create_connection((address, 5000))
            break
        except OSError:
            time.sleep(0.1)
    start = time.monotonic()
    connection.sendall(b".")
    connection.recv(1)
    print(time.monotonic() - start)
    connection.sendall(bytes(1_000_000))
"""


@pytest.mark.processes
@pytest.mark.skipif(why_not() is not None, reason=f"no network namespaces: {why_not()}")
def test_hosts_talk_over_a_link_with_a_delay():
    with hosts(Link("slow", 1000, 20)) as on:
        start = lambda host, role: subprocess.Popen(
            on(host, [sys.executable, "-c", TALK, role, ADDRESSES[0]]), stdout=subprocess.PIPE, text=True
        )
        server, client = start(0, "serve"), start(1, "ask")
        (told, _), (took, _) = server.communicate(timeout=60), client.communicate(timeout=60)
    assert int(told) == 1_000_000 and float(took) > 0.04  # there and back
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "cdn-host" not in names


def test_the_record_is_of_the_code_that_is_named():
    record = json.loads((ROOT / RECORD).read_text())
    assert record["machine"]["commit"] and not record["machine"]["commit"].endswith("dirty")
    assert record["recovery"]["statuses"] == [0, 0] and record["recovery"]["distance"] < 1e-3
