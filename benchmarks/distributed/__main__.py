"""Measure a training in one and in two processes, on one machine and between two hosts made of it; write a record.

    python -m benchmarks.distributed --out benchmarks/results/distributed.json
    python -m benchmarks.distributed.page benchmarks/results/distributed.json      (writes docs/scaling.md)

One process with all cores, one with a single core and two with a core each take the same steps, in random order within
a round. Two hosts are network namespaces with a link of a given rate and delay between them, which takes root; without
it they are left out. At the end a training of two hosts loses one of its processes, and has to finish all the same.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.distributed.hosts import ADDRESSES, DEVICES, Link, hosts, why_not
from benchmarks.distributed.page import ALL, ONE, TWO
from benchmarks.distributed.worker import PROBLEMS
from benchmarks.harness.checkout import environment
from benchmarks.harness.timing import schedule
from cdn.run_folder.state import has_state, load_state
from cdn_kernels.machine import describe

LIMIT = 300  # seconds for a command
LINKS = (Link("not limited"), Link("1 Gbit/s", 1000), Link("1 Gbit/s, 1 ms", 1000, 1), Link("100 Mbit/s", 100))
TORCHRUN = sys.executable, "-m", "torch.distributed.run"
PORT = 29511


def cases(links):
    """Return {name: function(problem, folder) that runs a case}, those of one machine first."""
    cores = os.cpu_count() or 1
    found = {
        ALL: lambda *to: _run([_alone(*to)], cores),
        ONE: lambda *to: _run([_alone(*to)], 1),
        TWO: lambda *to: _run([_together(*to, "--standalone", "--nproc-per-node=2")], 1),
    }
    for link in links:
        found[f"two hosts, {link.name}"] = lambda *to, link=link: _on_hosts(link, *to)
    return found


def _alone(problem, folder):
    return [sys.executable, "-m", "benchmarks.distributed.worker", problem, folder]


def _together(problem, folder, *options):
    return [*TORCHRUN, *options, "-m", "--", "benchmarks.distributed.worker", problem, folder]


def _meeting(host):
    """Return options of torchrun for one of two hosts."""
    # That the address is its own, torchrun finds by the name of the machine, which both hosts share.
    rendezvous = "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", f"--rdzv-conf=is_host={not host}"
    return ["--nnodes=2", "--nproc-per-node=1", *rendezvous, "--rdzv-id=run", f"--local-addr={ADDRESSES[host]}"]


def _on_hosts(link, problem, folder):
    with hosts(link) as on:
        words = [on(host, _together(problem, folder, *_meeting(host))) for host in (0, 1)]
        _run(words, 1, interfaces=DEVICES)


def _run(commands, threads, interfaces=(None,)):
    """Run commands side by side, and raise RuntimeError if one fails."""
    started = [_start(words, threads, interface) for words, interface in zip(commands, interfaces)]
    try:
        for process in started:
            out, _ = process.communicate(timeout=LIMIT)
            if process.returncode:
                raise RuntimeError(f"{process.args} failed:\n{out}")
    finally:
        for process in started:
            process.kill()


def _start(words, threads, interface):
    variables = dict(OMP_NUM_THREADS=str(threads))
    if interface:
        variables["GLOO_SOCKET_IFNAME"] = interface
    return subprocess.Popen(
        [str(word) for word in words],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def measure(problems, links, rounds):
    """Return {problem: {case: what its processes measured, a list for each round}}."""
    runs = cases(links)
    found = {problem: {name: [] for name in runs} for problem in problems}
    order = schedule([(problem, name) for problem in problems for name in runs], rounds)
    for problem, name in order:
        with tempfile.TemporaryDirectory() as folder:
            runs[name](problem, folder)
            of_processes = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
        found[problem][name].append(of_processes)
        print(f"{problem}, {name}: {of_processes[0]['step'] * 1e3:.1f} ms a step", flush=True)
    return found


def recover(steps=400):
    """Train between two hosts, kill one process, and return what came of it, beside a training of one process."""
    with tempfile.TemporaryDirectory() as folder, hosts(Link("not limited")) as on:
        run, alone = Path(folder, "run"), Path(folder, "alone")
        options = (
            f"--width 8 --steps {steps} --batch-size 64 --checkpoint-seconds 0 --evaluations 1 --device cpu".split()
        )
        train = ["-m", "--", "cdn.train", *options, "--out", run]
        agents = [
            _start(on(host, [*TORCHRUN, *_meeting(host), "--max-restarts=3", *train]), 1, DEVICES[host])
            for host in (0, 1)
        ]
        try:
            killed = _kill_one(agents, run, after=steps // 4)
            start = time.monotonic()
            said = [agent.communicate(timeout=LIMIT)[0] for agent in agents]
            seconds = time.monotonic() - start
        finally:
            for agent in agents:
                agent.kill()
        _run([[sys.executable, "-m", "cdn.train", *options, "--out", alone]], 1)
        return dict(
            steps=steps,
            killed_after=killed,
            statuses=[agent.returncode for agent in agents],
            seconds=seconds,
            said=[line for text in said for line in text.splitlines() if "from step" in line],
            distance=_distance(load_state(run), load_state(alone)),
        )


def _kill_one(agents, run, after):
    """Kill a process of the second host by SIGKILL once a step has been saved; return the step."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and agents[0].poll() is None:
        step = load_state(run)["step"] if has_state(run) else 0
        if step >= after:
            children = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            return step
        time.sleep(0.05)
    agents[0].kill()
    raise RuntimeError(f"the training did not come so far: {agents[0].communicate()[0]}")


def _distance(state, other):
    pairs = [(state["model"][name], value) for name, value in other["model"].items()]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in pairs)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of all cases (default: 6)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    args = parser.parse_args(argv)
    reason = why_not()
    if reason:
        print(f"no hosts: {reason}", file=sys.stderr)
    record = dict(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=describe("cpu"),
        rounds=args.rounds,
        recovery=None if reason else recover(),
        problems=measure(args.problems, () if reason else LINKS, args.rounds),
    )
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
