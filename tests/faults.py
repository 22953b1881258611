"""What goes wrong outside of the program, made to happen: full disks, files that may not be read, closed pipes."""

import contextlib
import ctypes
import errno
import io
import os
import resource
import sys

import pytest

# Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads and writes whatever it likes.
_OVERRIDE = 1 << 1 | 1 << 2


@contextlib.contextmanager
def full_disk():
    """Let every byte written to a file fail, as on a full disk, with another number of the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("process", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextlib.contextmanager
def permissions_hold():
    """Let the permissions of files hold for this thread, which those of root do without."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root reads and writes everything here")
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    had = sets[0].effective
    try:
        sets[0].effective = had & ~_OVERRIDE
        assert libc.capset(ctypes.byref(header), sets) == 0
        yield
    finally:
        sets[0].effective = had
        assert libc.capset(ctypes.byref(header), sets) == 0


@contextlib.contextmanager
def read_only(folder):
    """Let nothing be written into a folder or the folders in it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    modes = [(path, path.stat().st_mode) for path in folders]
    with permissions_hold():
        for path, mode in modes:
            path.chmod(mode & 0o555)
        try:
            yield
        finally:
            for path, mode in modes:
                path.chmod(mode)


@contextlib.contextmanager
def unreadable(path):
    """Let a file not be read."""
    mode = path.stat().st_mode
    with permissions_hold():
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)


def closed_pipe():
    """Return a text stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(os.fdopen(writing, "wb"), encoding="utf-8")


def contents(folder):
    """Return {path: bytes} of all files of a folder, and None for its folders, by relative path."""
    return {
        path.relative_to(folder): None if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))
    }


def failing(function, number=errno.EIO, when=lambda *arguments: True):
    """Return a function that fails with a number of an error when its arguments say so, and else calls another."""

    def call(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return call
