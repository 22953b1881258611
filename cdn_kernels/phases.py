"""Named phases of a training step, for whoever wants to watch them."""

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

_watcher = ContextVar("watcher", default=None)


def phase(name):
    """Mark the code of a ``with`` block as a phase; costs nothing unless someone watches."""
    watcher = _watcher.get()
    return nullcontext() if watcher is None else watcher(name)


def watched():
    """Tell whether someone watches."""
    return _watcher.get() is not None


@contextmanager
def watch(watcher):
    """Enter ``watcher(name)``, a context manager, for every phase inside the ``with`` block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
