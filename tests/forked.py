"""Several processes for one test: started from a server that has torch, which takes a moment instead of seconds."""

import contextlib
import faulthandler
import importlib
import io
import multiprocessing
import os
import socket
import traceback

import torch
import torch.distributed as dist

from cdn.cli.process import run_command
from cdn.processes import joined

_context = multiprocessing.get_context("forkserver")
# Besides what a command imports at once, what it imports on the way: torch its compiler, with an optimizer.
_PRELOAD = "torch.distributed", "torch._dynamo", "sklearn.datasets", "cdn.commands.train", "tests.forked"
# The modules whose command several processes may divide.
DIVIDED = ("cdn.commands.train", "cdn.commands.evaluate", "cdn.commands.certify", "cdn.experiments.robustness")
_context.set_forkserver_preload(list(_PRELOAD))
LIMIT = 300  # seconds, for machines that do other things too


def free_port():
    """Return the number of a port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_processes(count, function, *arguments, join=True):
    """Call a function in several processes that have joined, and return what it returns in each.

    Args:
        count: how many.
        function: of a module, called as ``function(processes, *arguments)``.
        arguments: and results, what can be pickled.
        join: whether they join before; else the function is given None, and may let them.

    Raises:
        AssertionError: one of them failed, or hangs.
    """
    pipes, workers = [], []
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as the agent of torchrun keeps
    agent = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port, TORCHELASTIC_USE_AGENT_STORE=True)
    for rank in range(count):
        mine, theirs = _context.Pipe()
        place = agent | dict(RANK=rank, WORLD_SIZE=count, LOCAL_RANK=rank)
        worker = _context.Process(target=_work, args=(theirs, place, join, function, packed(arguments)), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(mine)
        workers.append(worker)
    try:
        found = [unpacked(pipe.recv_bytes()) if pipe.poll(LIMIT) else ("failed", "too late") for pipe in pipes]
    except EOFError:
        raise AssertionError("a process has ended") from None
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
    failed = [text for how, text in found if how == "failed"]
    assert not failed, "\n".join(failed)
    return [result for _, result in found]


def say(_, module, arguments, fault=contextlib.nullcontext):
    """Run ``python -m module arguments`` in one process of several, and return its status and what it says.

    Args:
        module: one whose ``main`` torchrun may start several of.
        fault: a context manager of a module, for what goes wrong meanwhile.
    """
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(module).main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), fault():
        try:
            run_command(lambda: main([str(argument) for argument in arguments]), divided=module in DIVIDED)
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()


def packed(value):
    """Return bytes: torch would send tensors by open files, which end with their process."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def unpacked(data):
    """Return the value of bytes."""
    return torch.load(io.BytesIO(data), weights_only=False)


def _work(pipe, place, join, function, arguments):
    faulthandler.dump_traceback_later(LIMIT - 10, exit=True)  # where it hangs
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    try:
        with joined(torch.device("cpu")) if join else contextlib.nullcontext() as processes:
            pipe.send_bytes(packed(("returned", function(processes, *unpacked(arguments)))))
    except BaseException:
        pipe.send_bytes(packed(("failed", traceback.format_exc())))
