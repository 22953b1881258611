"""Download CIFAR-10 from its authors, as a whole or not at all."""

import hashlib
import shlex
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from cdn.errors import DataError

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
MEMBERS = {
    f"{FOLDER}/{name}"
    for name in ("batches.meta.txt", "test_batch.bin", *(f"data_batch_{number}.bin" for number in range(1, 6)))
}
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 2**20


def download_cifar10(data_dir: Path) -> None:
    """Put the official binary files into `data_dir`/cifar-10-batches-bin, 170 MB to fetch.

    All work happens in a temporary folder inside `data_dir`; the finished folder is renamed into place.

    Raises:
        DataError: no network, another archive than the authors', no room, or the folder exists already.
    """
    data_dir, target = Path(data_dir), Path(data_dir) / FOLDER
    if target.exists():
        raise DataError(f"{target}: expected no such folder before the download; remove it and run again")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar-10-", dir=data_dir) as scratch:
            archive = Path(scratch) / ARCHIVE
            digest = _fetch(archive)
            if digest != MD5:
                raise DataError(f"{URL}: expected the MD5 {MD5}, got {digest}; {_by_hand(data_dir)}")
            _unpack(archive, Path(scratch))
            (Path(scratch) / FOLDER).rename(target)
    except (OSError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DataError(f"{URL}: the download failed ({error}); {_by_hand(data_dir)}") from error


def _fetch(archive: Path) -> str:
    """Write the archive with a progress bar and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response, archive.open("wb") as out:
        length = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=length, unit="B", unit_scale=True, desc=ARCHIVE) as progress:
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                progress.update(len(chunk))
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Extract the expected plain files and nothing else."""
    missing = set(MEMBERS)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name in missing and member.isfile():
                tar.extract(member, folder, filter="data")
                missing.remove(member.name)
    if missing:
        raise tarfile.TarError(f"{ARCHIVE} lacks {', '.join(sorted(missing))}")


def unpacking(data_dir: Path) -> str:
    """Return the command that unpacks the archive where it lies."""
    return shlex.join(["tar", "-xzf", str(data_dir / ARCHIVE), "-C", str(data_dir)])


def _by_hand(data_dir: Path) -> str:
    return f"fetch {ARCHIVE} by hand into {data_dir}, run: {unpacking(data_dir)}, then repeat your command"
