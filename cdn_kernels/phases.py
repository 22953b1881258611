"""Named phases of a training step, for whoever wants to watch them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

Watcher = Callable[[str], AbstractContextManager[Any]]  # of the name of a phase

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def phase(name: str) -> AbstractContextManager[Any]:
    """Mark the code of a ``with`` block as a phase; costs nothing unless someone watches."""
    watcher = _watcher.get()
    return nullcontext() if watcher is None else watcher(name)


def watched() -> bool:
    """Tell whether someone watches."""
    return _watcher.get() is not None


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Enter ``watcher(name)``, a context manager, for every phase inside the ``with`` block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
