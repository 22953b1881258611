"""Run code in a process that has imported torch and nothing of ours, forked from one that has done so once."""

import contextlib
import io
import multiprocessing
import os


def printed_by(code, **environment):
    """Return what some code prints there, with more variables in its environment; raise what it raises."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch"])
    with processes.Pool(1) as pool:
        return pool.apply(_run, (code, environment))


def _run(code, environment):
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()
