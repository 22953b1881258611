"""Images, and what the generator of each class makes of them."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cdn.files import Results
from cdn.methods.attacks import distance
from cdn.methods.synthesis import ReconstructionClassifier
from cdn.model.finite import decided
from cdn.model.inputs import sigma_text
from cdn.pictures.grid import draw_grid
from cdn.pictures.tables import text_table

# Classes in the picture, at most.
CLASSES_SHOWN = 10


def explanation_table(results: Results) -> str:
    """Return accuracies, clean and at every radius, as text."""
    radii = results["radii"]
    at_l2, at_linf = [f"L2 {radius:g}" for radius in radii["l2"]], [f"Linf {sigma_text(r)}" for r in radii["linf"]]
    header = ["", "clean", *at_l2, *at_linf]
    percent = lambda values: [f"{100 * value:.1f}" for value in values]
    blank = [None] * len(at_linf)
    robust = {name: [*norms["l2"], *norms["linf"]] for name, norms in results["robust"].items()}
    return text_table(
        header,
        [
            ["reconstruction, APGD", *percent([results["clean"], *robust["reconstruction"]])],
            ["reconstruction, latent descent", None, *percent(results["latent_descent"]), *blank],
            ["reconstruction, lower bound", None, *percent(results["bound_above"]), *blank],
            ["RUN itself, APGD", *percent([results["own_clean"], *robust["own"]])],
        ],
    )


def explanation_figure(
    classifier: ReconstructionClassifier, x: Tensor, attacked: Tensor, labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Draw images and what each class makes of them, each above its attacked self; captions are the bounds."""
    pairs = torch.stack([x, attacked], 1).flatten(0, 1)
    found = classifier.infer(pairs)
    chosen = decided(found.bound)
    lengths = distance("l2", x, attacked).tolist()
    captions = [text for length in lengths for text in ("clean", f"changed by {length:.2f}")]
    columns = [("image", pairs, [f"{text}: {classes[c][:8] if c >= 0 else '?'}" for text, c in zip(captions, chosen)])]
    marks = lambda c: [f"{'▸ ' if c == best else ''}{value:.0f} nats" for value, best in zip(found.bound[:, c], chosen)]
    made = [(classes[c], found.reconstructions[:, c], marks(c)) for c in range(min(len(classes), CLASSES_SHOWN))]
    names = [name for label in labels for name in (classes[label], "attacked")]
    return draw_grid([columns, made], names)
