"""The download of CIFAR-10, without a network: all or nothing."""

import hashlib
import http.client
import io
import re
import tarfile
import urllib.error
import urllib.request

import pytest

from cdn.data import cifar10_download, load_dataset
from cdn.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RECORD = bytes([5]) + bytes(3072)


class Response(io.BytesIO):
    headers = {"Content-Length": "0"}  # noqa: RUF012 - as urllib's responses have it


def archive(leave_out=(), extra=()):
    """Return a small archive in the official layout, with a link and a file that must not be extracted."""
    files = {f"cifar-10-batches-bin/data_batch_{number}.bin": RECORD for number in range(1, 6)}
    files["cifar-10-batches-bin/test_batch.bin"] = RECORD
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(NAMES).encode()
    files |= dict(extra)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            if name not in leave_out:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def serve(monkeypatch):
    """Return a function that makes urlopen answer with some bytes, and their checksum the expected one."""

    def answer(payload, md5=None):
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(payload))
        monkeypatch.setattr(cifar10_download, "MD5", md5 or hashlib.md5(payload).hexdigest())

    return answer


def download(folder):
    return load_dataset("cifar10", folder, download=True)


def test_a_download_is_unpacked_and_leaves_nothing_else(serve, tmp_path):
    serve(archive(extra=[("../evil", b"x"), ("cifar-10-batches-bin/readme.html", b"x")]))
    data = download(tmp_path / "new")
    assert len(data.train) == 5 and data.test.labels.tolist() == [5]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-batches-bin"]
    assert len(list((tmp_path / "new/cifar-10-batches-bin").iterdir())) == 7
    assert not (tmp_path / "evil").exists()


def test_present_data_is_not_fetched_again(serve, tmp_path, monkeypatch):
    serve(archive())
    download(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: pytest.fail("fetched again"))
    assert len(download(tmp_path).train) == 5


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route"),
        TimeoutError("slow"),
        http.client.IncompleteRead(b""),
        urllib.error.HTTPError("u", 404, "Not Found", None, None),
    ],
)
def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch, error):
    def fail(url, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    steps = (
        f"fetch cifar-10-binary.tar.gz by hand into {tmp_path}, "
        f"run: tar -xzf {tmp_path}/cifar-10-binary.tar.gz -C {tmp_path}, then repeat your command"
    )
    with pytest.raises(DataError, match=f"{re.escape(cifar10_download.URL)}.*{re.escape(steps)}"):
        download(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("payload", "md5", "message"),
    [
        (b"something else", "0" * 32, "expected the MD5 0{32}, got "),
        (b"not a tar", None, "the download failed"),
        (archive()[:200], None, "the download failed"),
        (archive(leave_out=["cifar-10-batches-bin/test_batch.bin"]), None, "lacks .*/test_batch.bin"),
    ],
)
def test_a_bad_archive_leaves_nothing(serve, tmp_path, payload, md5, message):
    serve(payload, md5)
    with pytest.raises(DataError, match=message):
        download(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-bin: expected no such folder"):
        download(tmp_path)
