"""Run a case in a process of its own: nothing of another is in its memory, its allocator or its threads."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time

import torch

import cdn_kernels
from benchmarks.harness.memory import peak_bytes

# Of glibc: from how many bytes on a buffer is mapped for itself. What is left of one then serves no other.
_MAPPED_FROM = "MALLOC_MMAP_THRESHOLD_"


class Refused(Exception):
    """A case cannot run here; the message says why."""


class Died(Exception):
    """The process of a case ended; the message says how."""


def refusing(case):
    """Return a case whose exceptions say that it refuses: what others wrote need not do all that this library does."""

    def call():
        try:
            return case()
        except Exception as error:
            raise Refused(str(error)) from error

    return call


class Worker:
    """A case in another process, which waits until it is called; a context manager.

    Args:
        factory: a class or function that a new process can import; what it returns is called for every run, and
            says by ``result()`` what the last run found.
        args, options: for the factory.
        keep_pages: reuse freed memory, as ``cdn.train --fused`` does.

    Raises:
        Refused: by the first use, if the factory or the first run raises an error; with its message.
        Died: the process ended.
    """

    def __init__(self, factory, *args, keep_pages=False, **options):
        self.name = getattr(factory, "__name__", str(factory))
        self.call = factory, args, options
        self.keep_pages = keep_pages

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.unread = 0  # answers that nobody has waited for
        self.process = context.Process(
            target=_serve, args=(theirs, self.call, self.keep_pages, torch.get_num_threads()), daemon=True
        )
        self.process.start()
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.join()

    def begin_anew(self):
        """Go on in a new process, in which the case has not run yet."""
        self.__exit__()
        self.__enter__()

    def prepare(self):
        """Begin a first run without waiting for it: what has to compile does so beside the others."""
        self.pipe.send(("prepare",))
        self.unread += 1

    def ready(self):
        """Wait for the first run, or do it."""
        self._ask("prepare")

    def __call__(self):
        """Run the case once; return what it returns."""
        return self._ask("run")

    def repeat(self, times):
        """Run the case some times, with nothing in between."""
        self._ask("repeat", times)

    def times(self, names, rounds, seed=0):
        """Return what the case's method of that name does, see :class:`.turns.Turns`."""
        return self._ask("times", names, rounds, seed)

    def processor_seconds(self):
        """Return how long the process has run on processors, all its threads together."""
        return self._ask("processor")

    def result(self):
        """Return what the last run found."""
        return self._ask("result")

    def tolerance(self):
        """Return how far its result may be from others', where the case says so; else None."""
        return self._ask("tolerance")

    def peak_bytes(self, device):
        """Run the case once; return its peak memory, see :func:`.memory.peak_bytes`.

        On CPUs that is of the buffers in use: the case runs in a process of its own, whose allocator returns what is
        freed. Gaps between buffers, which differ from run to run, do not count.
        """
        if device != "cpu" or sys.platform != "linux" or _MAPPED_FROM in os.environ:
            return self._ask("memory", device)
        factory, args, options = self.call
        os.environ[_MAPPED_FROM] = str(1 << 16)
        try:
            with Worker(factory, *args, **options) as other:
                return other._ask("memory", device)
        finally:
            del os.environ[_MAPPED_FROM]

    def _ask(self, *request):
        try:
            while self.unread:
                self.unread -= 1
                self._answer()
            self.pipe.send(request)
            return self._answer()
        except (EOFError, ConnectionError):
            self.process.join(10)
            raise Died(f"the process of {self.name} ended with {_status(self.process.exitcode)}") from None

    def _answer(self):
        while not self.pipe.poll(1):
            if not self.process.is_alive():
                raise EOFError
        kind, value = self.pipe.recv()
        if kind == "refused":
            raise Refused(value)
        return value


def _status(code):
    """Return an exit code in words: negative ones are signals."""
    return code if code is None or code >= 0 else signal.Signals(-code).name


def begin_anew(workers):
    """Let workers go on in new processes, which start beside each other; then run each of their cases twice."""
    for worker in workers:
        worker.begin_anew()
        worker.prepare()
    for worker in workers:
        worker.ready()
    for worker in workers:  # what it learned in the first run shows in the second
        worker()


def _serve(pipe, call, keep_pages, threads):
    torch.set_num_threads(threads)
    if keep_pages:
        cdn_kernels.keep_pages()
    case = None
    while True:
        request, *args = pipe.recv()
        try:
            if case is None:
                factory, positional, options = call
                case = factory(*positional, **options)
                case()
            answer = {
                "prepare": lambda: None,
                "run": case,
                "repeat": lambda times: [case() for _ in range(times)] and None,
                "times": lambda *request: case.times(*request),
                "processor": time.process_time,
                "result": lambda: case.result().numpy(),
                "tolerance": lambda: getattr(case, "tolerance", None),
                "memory": lambda device: peak_bytes(case, device),
            }[request](*args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pipe.send(("answer", answer))
        except Exception as error:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(("refused", f"{type(error).__name__}: {error}"))
