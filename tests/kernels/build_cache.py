"""Keep what tests compile between runs, under a name that changes with all that it is made of."""

import hashlib
import tempfile
from pathlib import Path


def key(root, files, *more):
    """Return a name for what is made of some files, below a root, and of whatever else decides: any values."""
    digest = hashlib.sha256(repr(more).encode())
    for file in sorted(files):
        contents = file.read_bytes()
        digest.update(f"\n{file.relative_to(root)} {len(contents)}\n".encode())
        digest.update(contents)
    return digest.hexdigest()[:16]


def once(folder, name, build):
    """Return the path of a file in a folder, built if it is not there: whole, or not at all if the build fails.

    Whoever asks for something of this folder while it is built waits, in this process or another.

    Args:
        build: a function of an empty folder that returns the path of the file in there.
    """
    import fcntl  # not on Windows, where nothing is built

    path = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, be it because the process has ended
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                build(Path(unfinished)).replace(path)
    return path
