"""Commands as ``python -m`` runs them, without a process of their own, which takes seconds to begin."""

import contextlib
import io
import runpy
import sys
import warnings
from typing import NamedTuple
from unittest import mock


class Outcome(NamedTuple):
    """The exit status of a command, what it printed, and what it said on stderr."""

    status: int
    out: str
    err: str


def run_module(module, *arguments):
    """Run ``python -m module arguments`` in this process; return its :class:`Outcome`."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [module, *map(str, arguments)]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, that the module was imported before
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stop:
            status = stop.code
    return Outcome(status, out.getvalue(), err.getvalue())
