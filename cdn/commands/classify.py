"""Classify image files with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdn.cli.arguments import DEVICE, RUN, Option, make_parser, pick_device, positive_int, run_path
from cdn.errors import CDNError, CheckpointError, DataError, NotFiniteError
from cdn.files import json_text
from cdn.images.image_files import read_image
from cdn.images.memory import require_memory
from cdn.model import Network
from cdn.model.capabilities import classifies, has_density, kind
from cdn.model.density import estimate_sigma, log_prob
from cdn.model.finite import require_finite
from cdn.run_folder.config import read_config
from cdn.run_folder.weights import load

DESCRIPTION = """\
Print the most probable classes of each image, and for a model of densities also log p(y), up to a constant of
the model, and the noise level it sees in the image."""
EXAMPLES = """\
examples:
  python -m cdn.classify cifar10 cat.png dog.jpg --resize
  python -m cdn.classify runs/digits digits/*.png --top 1 --json

Images that cannot be read are reported on stderr, the others are classified, and the exit status is 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if an image could not be classified."""
    args = _parser().parse_args(argv)
    model = load(args.run, pick_device(args.device))
    if not classifies(model):
        raise CDNError(f"{args.run}: expected a model that classifies, got {kind(model)}")
    side = _training_side(args.run)
    if args.resize and side is None:
        raise CDNError(f"--resize: {args.run} does not say which image size it was trained on")
    failed = odd_size = False
    for path in args.images:
        try:
            y, note = read_image(path, model.config["in_channels"], side if args.resize else None)
            result = classify(model, y, path, args.top)
        except (DataError, NotFiniteError) as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
            continue
        if side is not None and y.shape[2:] != (side, side) and not odd_size:
            odd_size = True
            note = (
                f"{path} has {y.shape[3]}x{y.shape[2]} pixels, the model was trained on {side}x{side}; "
                "it takes any size, but expect less of it; --resize makes images fit (said once)"
            )
        if note:
            print(f"note: {note}", file=sys.stderr)
        print(json_text(result) if args.json else _describe(result))
    return int(failed)


def classify(model: Network, y: Tensor, path: str | Path, top: int) -> dict[str, Any]:
    """Return what a model says about one image, as a dict that JSON can hold.

    Args:
        model: a model with classes.
        y: [1, C, H, W] in [0, 1].
        path: of the image, for the record and for errors.
        top: how many classes to name.

    Returns:
        ``image``, ``classes`` (a list of ``class`` and ``probability``, most probable first) and, for a model
        of densities, ``log_density`` (up to a constant) and ``sigma``, the estimated noise level for images
        in [0, 1].

    Raises:
        DataError: the image is too large for the memory.
        NotFiniteError: an output of the model is not finite.
    """
    device = next(model.parameters()).device
    y = y.to(device)
    _, _, height, width = y.shape
    try:
        require_memory(model, height, width, device, "use --resize")
    except CDNError as error:
        raise DataError(f"{path}: {error}") from None
    with torch.no_grad():
        logits = model(y)[0]
        require_finite(logits, f"{path}: the logits of the model are nan or infinite: nothing can be said of it")
        probabilities, index = logits.softmax(0).sort(descending=True)
    names = model.classes or tuple(map(str, range(len(index))))
    result: dict[str, Any] = dict(
        image=str(path),
        classes=[
            {"class": names[i], "probability": p} for i, p in zip(index[:top].tolist(), probabilities[:top].tolist())
        ],
    )
    if has_density(model):
        found = torch.cat([log_prob(model, y), estimate_sigma(model, y)])
        require_finite(found, f"{path}: the log-density or the score of the model is nan or infinite")
        result |= dict(zip(("log_density", "sigma"), found.tolist()))
    return result


def _describe(result: dict[str, Any]) -> str:
    classes = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in result["classes"])
    line = f"{result['image']}: {classes}"
    if "sigma" in result:
        line += (
            f"   log p(y) {result['log_density']:.1f}, noise {result['sigma']:.4f} ({result['sigma'] * 255:.1f}/255)"
        )
    return line


def _training_side(run: Path) -> int | None:
    """Return the side of the training images, or None if nothing tells it."""
    try:
        return read_config(run if run.is_dir() else run.parent).image_side
    except CheckpointError:
        return None


def _parser() -> argparse.ArgumentParser:
    options = (
        Option("--top", positive_int, 3, "how many classes to print"),
        Option("--json", bool, False, "print one JSON object per image and line"),
        Option("--resize", bool, False, "cut out the central square and resize it to the size of the training images"),
        DEVICE,
    )
    parser = make_parser("cdn.classify", DESCRIPTION, options, epilog=EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=run_path, help=RUN)
    text = "image files, 8 bits per channel, opaque; colour becomes grey, and grey colour, as the model needs"
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help=text)
    return parser
