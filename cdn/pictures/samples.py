"""Images drawn from a model, and those of the training that are nearest to them."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from cdn.files import Results
from cdn.pictures.grid import draw_grid
from cdn.pictures.tables import text_table

PER_CLASS, SHOWN = 5, 8
# The nearest training images of each set and their distances.
Nearest = dict[str, tuple[Tensor, ...]]


def samples_table(rows: dict[str, Results]) -> str:
    """Return how much each set of images is like those of the training, as text."""
    header = ["images", "Fréchet distance", "nearest training image", "classified as meant", "steps", "seconds"]
    keys = ("frechet", "nearest", "agreement", "steps", "seconds")
    return text_table(header, [[name, *map(row.get, keys)] for name, row in rows.items()])


def samples_figure(samples: dict[str, Tensor], classes: Sequence[str]) -> Figure:
    """Draw a group of columns per set of samples; rows are classes where samples were drawn given the class."""
    groups = []
    for name, images in samples.items():
        # Sample i is of class i modulo the number of classes.
        columns = images[: PER_CLASS * len(classes)].split(len(classes))
        title = name.replace(", ", "\n") if "," in name else f"{name}\nof any class"
        groups.append([(title if i == len(columns) // 2 else "", column, ()) for i, column in enumerate(columns)])
    return draw_grid(groups, classes[: len(images)])


def nearest_figure(sets: dict[str, Tensor], nearest: Nearest) -> Figure:
    """Draw images beside the nearest ones of the training, with the root mean square difference."""
    groups = []
    for name, images in sets.items():
        found, distance = nearest[name]
        captions = [f"{value:.3f}" for value in distance[:SHOWN].tolist()]
        groups.append(
            [(name.replace(", ", "\n"), images[:SHOWN], ()), ("nearest in\ntraining", found[:SHOWN], captions)]
        )
    return draw_grid(groups)
