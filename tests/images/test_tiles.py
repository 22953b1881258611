import itertools

import pytest
import torch

from cdn.errors import CDNError
from cdn.images import memory
from cdn.images.tiles import in_tiles, split_tiles


@pytest.mark.parametrize("height, width, size", [(40, 33, 16), (100, 16, 32), (17, 200, 64)])
def test_tiles_cover_the_image_and_overlap(height, width, size):
    tiles = split_tiles(height, width, size)
    covered = torch.zeros(height, width)
    for rows, columns in tiles:
        assert (rows.stop - rows.start, columns.stop - columns.start) == (min(size, height), min(size, width))
        covered[rows, columns] += 1
    assert covered.min() >= 1
    rows = sorted({(r.start, r.stop) for r, _ in tiles})
    assert all(stop - start >= max(8, size // 8) for (_, stop), (start, _) in itertools.pairwise(rows))


def test_a_local_function_is_the_same_in_tiles():
    y = torch.rand(1, 3, 50, 37, dtype=torch.float64)
    assert torch.allclose(in_tiles(lambda tile: 2 * tile + 1, y, 16), 2 * y + 1)


def test_tiles_blend_without_a_seam():
    count = iter(range(100))
    number = lambda tile: torch.full_like(tile, next(count))
    blended = in_tiles(number, torch.zeros(1, 1, 16, 120), 64)[0, 0, 0]
    assert (blended.diff().abs() <= 0.25).all() and blended[0] == 0 and blended[-1] == 1


def test_one_tile_is_the_function_itself():
    y = torch.rand(1, 1, 9, 21)
    assert in_tiles(lambda tile: tile, y, 32) is y


def test_the_memory_of_a_graph_is_measured(make_model):
    model = make_model()
    # Two 3x3 convolutions of 8 channels with their GELU are the least that a stage can keep, in float32.
    assert 200 < memory.bytes_per_pixel(model) < 5000
    assert memory.bytes_per_pixel(model) == memory.bytes_per_pixel(model)
    assert all(p.grad is None for p in model.parameters())


def test_too_large_an_image_is_refused_with_advice(make_model, monkeypatch):
    model, cpu = make_model(), torch.device("cpu")
    assert memory.require_memory(model, 8, 8, cpu, "use --tile 32") is None
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 50)
    assert "about" in memory.require_memory(model, 10_000, 10_000, cpu, "use --tile 32")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    with pytest.raises(CDNError, match="900x800 pixels take about .* GiB of memory.*: use --tile 32"):
        memory.require_memory(model, 800, 900, cpu, "use --tile 32")
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    memory.require_memory(model, 800, 900, cpu, "use --tile 32")


def test_tiles_are_chosen_where_an_image_does_not_fit(make_model, monkeypatch):
    model, cpu = make_model(), torch.device("cpu")
    of_pixel = 2 * memory.bytes_per_pixel(model)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert memory.fitting_tile(model, 8, 8, cpu) == (None, None)
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(of_pixel * 1000 * 1001))
    assert memory.fitting_tile(model, 1000, 1000, cpu)[0] is None
    side, sentence = memory.fitting_tile(model, 1000, 1002, cpu)
    # The largest multiple of 64 whose square fits into half of the memory.
    assert side == 704 and sentence.startswith("1002x1000 pixels take about")
    assert sentence.endswith(": taken in tiles of 704 pixels, which comes close to the image as a whole")
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(of_pixel * 1000))
    with pytest.raises(CDNError, match="there is no memory for tiles of it either"):
        memory.fitting_tile(model, 1000, 1000, cpu)


def test_available_memory_is_plausible():
    assert memory.available_bytes(torch.device("cpu")) > 1 << 20
