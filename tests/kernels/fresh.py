"""Run code in a process that has imported torch and nothing of ours, forked from one that has done so once."""

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys


def printed_by(code, **environment):
    """Return what some code prints there, with more variables in its environment; raise what it raises."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch"])
    with processes.Pool(1) as pool:
        printed = pool.apply(_run, (code, environment))
    if printed is None:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(done.stderr)
        return done.stdout
    return printed


def _run(code, environment):
    if "cdn_kernels" in sys.modules:  # another test started the server of this process, with more in it
        return None
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()
