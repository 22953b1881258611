"""Random crops and mirrors: exact pixels, one draw per image, a pure function of seed and step."""

import pytest
import torch
import torch.nn.functional as F

from cdn.data import Augmentation
from cdn.errors import DataError


def augment(images, seed, step, **options):
    """Draw the augmentation of a batch, uint8 [B, C, H, W], and apply it."""
    augmentation = Augmentation(tuple(images.shape[1:]), **options)
    return augmentation.apply(images, augmentation.draw(len(images), seed, step))


def coordinates(batch, height, width):
    """Return images whose two channels hold each pixel's own row and column."""
    rows = torch.arange(height).view(1, height, 1).expand(1, height, width)
    columns = torch.arange(width).view(1, 1, width).expand(1, height, width)
    return torch.cat([rows, columns]).to(torch.uint8).expand(batch, 2, height, width).contiguous()


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 9, 11), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(("padding", "size", "flip"), [(4, None, True), (2, 5, False), (0, 6, True), (8, 9, True)])
def test_every_result_is_a_window_of_the_reflected_image(images, padding, size, flip):
    result = augment(images, 1, 2, crop_padding=padding, flip=flip, crop_size=size)
    height, width = (size, size) if size else images.shape[2:]
    assert result.shape == (64, 3, height, width) and result.dtype == torch.uint8
    padded = F.pad(images.float(), [padding] * 4, mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, height, width]
    target = result[:, :, None, None]
    equal = (windows == target).all(dim=(1, 4, 5)) | (flip & (windows == target.flip(-1)).all(dim=(1, 4, 5)))
    assert equal.flatten(1).any(dim=1).all()


def test_each_image_has_its_own_draw_over_the_whole_range():
    # Without padding, the first pixel of a crop shows the crop's own offset.
    result = augment(coordinates(400, 8, 8), 0, 0, crop_size=3)
    assert set(result[:, 0, 0, 0].tolist()) == set(range(6))
    assert set(result[:, 1, 0, 0].tolist()) == set(range(6))
    assert (result[:, 0, 0, 0] != result[:, 1, 0, 0]).any()


def test_flip_mirrors_about_half_and_moves_nothing_else():
    images = coordinates(1000, 4, 6)
    result = augment(images, 0, 0, flip=True)
    kept = (result == images).flatten(1).all(dim=1)
    mirrored = (result == images.flip(-1)).flatten(1).all(dim=1)
    assert (kept | mirrored).all()
    assert 400 < mirrored.sum() < 600


def test_flip_leaves_the_crops_as_they_were():
    images = coordinates(50, 8, 8)
    plain = augment(images, 0, 0, crop_size=4)
    flipped = augment(images, 0, 0, crop_size=4, flip=True)
    assert torch.equal(plain[:, 1].amin((1, 2)), flipped[:, 1].amin((1, 2)))


def test_the_draw_depends_on_seed_and_step_alone(images):
    def draw(seed, step):
        return augment(images, seed, step, crop_padding=3, flip=True)

    original, before = images.clone(), torch.get_rng_state()
    first = draw(1, 2)
    assert torch.equal(draw(1, 2), first)
    assert not torch.equal(draw(1, 3), first) and not torch.equal(draw(2, 2), first)
    assert torch.equal(images, original) and torch.equal(torch.get_rng_state(), before)


def test_nothing_asked_for_is_nothing_done(images):
    assert augment(images, 0, 0) is images
    assert augment(images[:0], 0, 0, crop_padding=2).shape == (0, 3, 9, 11)


def test_a_channels_last_batch_gives_the_same_pixels(images):
    twin = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(twin, 0, 0, crop_padding=2), augment(images, 0, 0, crop_padding=2))


@pytest.mark.parametrize("padding", [-1, 9])
def test_reflection_must_fit(images, padding):
    with pytest.raises(DataError, match=rf"crop_padding: a 9x11 image reflects 0\.\.8 pixels, got {padding}"):
        augment(images, 0, 0, crop_padding=padding)


@pytest.mark.parametrize("size", [0, 10])
def test_the_crop_must_fit(images, size):
    with pytest.raises(DataError, match=rf"crop_size: expected 1\.\.9 .* got {size}"):
        augment(images, 0, 0, crop_size=size)
