"""Sets of outliers: what is made of images, and what is read from folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.errors import DataError
from cdn.methods.detection.letters import letters
from cdn.methods.detection.outlier_sets import read_outliers, shuffle_blocks, synthetic_outliers


def images(count=6, channels=3, side=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), generator=generator).float() / 255


def write(path, pixels):
    Image.fromarray(pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def test_all_sets_are_images():
    x = images()
    sets = synthetic_outliers(x, seed=1)
    for name, values in sets.items():
        assert values.shape == x.shape and values.min() >= 0 and values.max() <= 1, name
        assert torch.equal((values * 255).round() / 255, values), name
        assert not torch.equal(values, x), name
    again, other = synthetic_outliers(x, seed=1), synthetic_outliers(x, seed=2)
    assert all(torch.equal(again[name], values) for name, values in sets.items())
    assert not torch.equal(other["uniform noise"], sets["uniform noise"])


def test_what_the_sets_are():
    x = images()
    sets = synthetic_outliers(x)
    torch.testing.assert_close(sets["inverted"] + x, torch.ones_like(x))
    assert torch.equal(sets["upside down"].flip(2), x) and torch.equal(sets["mirrored"].flip(3), x)
    assert torch.equal(sets["quarter turn"].rot90(3, (2, 3)), x)
    assert float(sets["constant"].flatten(2).std(2).max()) == 0 and float(sets["constant"][:, 0, 0, 0].std()) > 0
    torch.testing.assert_close(sets["interpolated"][1:], (x[1:] + x[:-1]) / 2, atol=0.5 / 255 + 1e-6, rtol=0)
    # Pixels move with all their channels, in an order of their own in each image.
    moved = sets["shuffled pixels"]
    code = lambda t: ((t * 255).round().long() * torch.tensor([1, 256, 65536]).view(1, 3, 1, 1)).sum(1).flatten(1)
    assert torch.equal(code(moved).sort(1).values, code(x).sort(1).values)
    same = images(1).expand(2, -1, -1, -1)
    first, second = synthetic_outliers(same)["shuffled pixels"]
    assert not torch.equal(first, second)


def test_letters_fill_the_height_and_differ():
    drawn = letters((200, 1, 8, 8), torch.Generator().manual_seed(0))
    assert drawn.shape == (200, 1, 8, 8) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    # The drawing touches the first and the last row, up to what reducing it leaves of a stroke.
    assert (drawn.amax((1, 3)) > 0.1)[:, [0, -1]].all()
    assert len({tuple(image.flatten().tolist()) for image in drawn}) > 190
    assert torch.equal(drawn, letters((200, 1, 8, 8), torch.Generator().manual_seed(0)))
    wide = letters((5, 3, 20, 4), torch.Generator().manual_seed(0))
    assert wide.shape == (5, 3, 20, 4) and torch.equal(wide[:, 0], wide[:, 2])
    assert "letters" in synthetic_outliers(images(channels=1)) and "letters" not in synthetic_outliers(images())


def test_blocks_move_as_a_whole():
    x = images(3, 1, 10)
    shuffled = shuffle_blocks(x, 4, torch.Generator().manual_seed(0))
    blocks = lambda t: sorted(
        tuple(t[0, i : i + 2, j : j + 2].flatten().tolist()) for i in range(0, 8, 2) for j in range(0, 8, 2)
    )
    for before, after in zip(x, shuffled):
        assert blocks(before) == blocks(after) and not torch.equal(before, after)
    # Four blocks of 2 x 2 pixels fill 8 of the 10 rows and columns: the rest stays.
    assert torch.equal(shuffled[:, :, 8:], x[:, :, 8:]) and torch.equal(shuffled[:, :, :, 8:], x[:, :, :, 8:])
    with pytest.raises(ValueError, match="expected images of at least 4 x 4 pixels, got 3 x 3"):
        shuffle_blocks(x[:, :, :3, :3], 4, torch.Generator())


def test_folders_hold_images_and_strips(tmp_path):
    strip, single, wide = images(3, side=8), images(1, side=8)[0], images(1, side=20)[0][:, :, :16]
    write(tmp_path / "a.png", strip.transpose(0, 1).reshape(3, 24, 8))
    write(tmp_path / "b.png", single)
    write(tmp_path / "c.png", wide)
    (tmp_path / "notes.txt").write_text("")
    found = read_outliers(tmp_path, (3, 8, 8), 10)
    assert found.shape == (5, 3, 8, 8)
    torch.testing.assert_close(found[:4], torch.cat([strip, single[None]]))
    assert torch.equal(read_outliers(tmp_path, (3, 8, 8), 2), found[:2])
    assert read_outliers(tmp_path, (1, 8, 8), 9).shape == (5, 1, 8, 8)


def test_folders_that_hold_none(tmp_path):
    with pytest.raises(DataError, match="expected a folder of images, found none"):
        read_outliers(tmp_path / "nowhere", (3, 8, 8), 5)
    with pytest.raises(DataError, match="expected image files"):
        read_outliers(tmp_path, (3, 8, 8), 5)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(DataError, match="a.png: expected a readable image"):
        read_outliers(tmp_path, (3, 8, 8), 5)
    with pytest.raises(DataError, match="need square images, got 8 x 9"):
        read_outliers(tmp_path, (3, 8, 9), 5)


def test_strips_of_real_photographs(shared_data):
    found = read_outliers(shared_data / "cifar100_ood", (3, 32, 32), 501)
    assert found.shape == (501, 3, 32, 32)
    strip = np.asarray(Image.open(shared_data / "cifar100_ood" / "000.webp").convert("RGB"))
    assert torch.equal(
        (found[7] * 255).round().to(torch.uint8), torch.from_numpy(strip[7 * 32 : 8 * 32].copy()).permute(2, 0, 1)
    )
