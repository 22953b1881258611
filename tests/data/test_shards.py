"""Tar shards that are damaged or cut off, which programs read up to there without a word."""

import io
import tarfile

import pytest

from cdn.data.shards import check_shards
from cdn.errors import DataError


def shard(path, count=4, mode="w"):
    """Write members of 600 bytes, so that each takes 3 blocks of 512 with its header."""
    with tarfile.open(path, mode) as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:06}.cls")
            member.size = 600
            archive.addfile(member, io.BytesIO(bytes([65 + number]) * member.size))
    return path


def blocks(first, last):
    return slice(512 * first, 512 * last)


# What is done to the content, and words of the sentence.
DAMAGED = {
    "a header overwritten": (lambda c: c[blocks(0, 3)] + b"\xff" * 512 + c[512 * 4 :], "member 1 of it is damaged"),
    "a header blank": (lambda c: c[blocks(0, 6)] + bytes(512) + c[512 * 7 :], "member 2 of it is damaged"),
    "the first header": (lambda c: b"\xff" * 512 + c[512:], "expected a whole tar file, got: bad checksum"),
    "cut in a member": (lambda c: c[: 512 * 5], "expected a whole tar file, got: unexpected end of data"),
    "cut in a header": (lambda c: c[: 512 * 3 + 100], "its end is missing, after 1 members"),
    "cut between members": (lambda c: c[: 512 * 3], "its end is missing, after 1 members"),
    "empty": (lambda c: b"", "expected a whole tar file, got: empty file"),
    "something else": (lambda c: b"no archive" * 1000, "expected a whole tar file"),
}


@pytest.mark.parametrize("damage, words", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_sentence(tmp_path, damage, words):
    path = shard(tmp_path / "train-0001.tar")
    shard(tmp_path / "train-0000.tar")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as error:
        check_shards(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


def test_whole_shards_at_any_depth_and_compressed_ones_pass(tmp_path):
    (tmp_path / "train").mkdir()
    shard(tmp_path / "train" / "0.tar")
    shard(tmp_path / "none.tar", 0)
    shard(tmp_path / "packed.tar.gz", mode="w:gz")
    check_shards(tmp_path)


def test_one_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(DataError, match=r"0\.tar: it cannot be read: Is a directory"):
        check_shards(tmp_path)
