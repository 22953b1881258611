"""The command line of ``python -m cdn.train``, whose options are the settings of a run."""

import argparse
from pathlib import Path
from typing import Any

from cdn.cli.arguments import (
    fraction,
    make_parser,
    noise_level,
    nonnegative_float,
    positive_float,
    positive_int,
    seed_number,
    whole_number,
)
from cdn.model.gradresnet import NORMS, STEMS
from cdn.model.head import HEADS
from cdn.model.modes import PRECISIONS
from cdn.training.jem import STARTS
from cdn.training.recipe import OPTIMIZERS
from cdn.training.recipes import NAMED, NAMED_DATA, RECIPES
from cdn.training.settings import BLOCKS, KERNELS, OBJECTIVES, Settings
from cdn_kernels.noise import CLEAN_LAWS, LAWS

EXAMPLES = """examples:
  python -m cdn.train                                   the bundled handwritten digits, a minute or two on a CPU
  python -m cdn.train --data cifar10 --data-dir data --download --precision bf16
  python -m cdn.train --data imagefolder --data-dir photos --image-size 64 --crop-size 56
  python -m cdn.train --data imagefolder --data-dir imagenet --recipe imagenet
  python -m cdn.train --data hf --data-dir uoft-cs/cifar100
  python -m cdn.train --objective jem --model gradresnet18 --data cifar10 --data-dir data
  python -m cdn.train --init runs/cifar10 --data imagefolder --data-dir photos --epochs 10   fine-tune
  python -m cdn.train --resume runs/2026-01-31-120000   go on after an interruption, bit for bit on a CPU
"""
DESCRIPTION = """Train one network f(y)_c = log p(y, c) on noisy images, so that softmax classifies them and the input
gradient of logsumexp denoises them. Defaults marked * depend on the data set, or on --recipe."""
# A setting, how its value is read (a type, the choices, or bool for a switch that can be turned off), and what it is.
Row = tuple[str, Any, str]
GROUPS: dict[str, tuple[Row, ...]] = {
    "run": (
        ("fused", bool, "insist on the compiled kernels, or take plain PyTorch (default: the kernels if they can run)"),
        ("impl", KERNELS, "whose kernels, as --fused; auto: the fastest"),
        ("device", str, "auto, cpu, cuda or cuda:N"),
        ("precision", PRECISIONS, "bf16: convolutions in bfloat16, everything delicate in float32"),
        ("seed", seed_number, "seed of weights, batches, augmentation and noise"),
        ("log_every", positive_int, "steps between rows of metrics.jsonl"),
        ("evaluations", positive_int, "evaluations over the run"),
        ("checkpoint_seconds", nonnegative_float, "longest time between checkpoints"),
    ),
    "data": (
        (
            "data",
            NAMED_DATA,
            "digits (of scikit-learn), cifar10, imagefolder (split/class/*.jpg), or hf (of Hugging Face's datasets)",
        ),
        (
            "data_dir",
            str,
            "folder of the data set; of hf (parquet, arrow, tar) also a name on the Hub, such as ylecun/mnist",
        ),
        ("image_size", positive_int, "side that image folders are resized to; left out, their own, if all have one"),
        ("train_images", positive_int, "train on so many images only, chosen at random, the classes in proportion"),
        (
            "workers",
            whole_number,
            "processes that decode images ahead of the steps (default: as the cores, at most 8; 0 if memory keeps all)",
        ),
        ("batch_size", positive_int, "images per step, of all processes together"),
        ("accumulate", positive_int, "compute a step in so many parts, one after the other, in that much less memory"),
        ("recompute", True, "keep only what lies between blocks and compute the rest again: less memory, more time"),
        ("crop_padding", whole_number, "random translation by up to this many pixels"),
        ("crop_size", positive_int, "train on random crops of this side"),
        (
            "crop_area",
            fraction,
            "train on random parts of images, of this share of their area or more, resized to --image-size",
        ),
        ("flip", bool, "mirror images at random"),
    ),
    "model": (
        ("init", str, "start from the weights of a run or a model by name, and its options of the network; a new run"),
        ("model", BLOCKS, "the joint GradResNet, or a baseline: resnet* only classifies, denoiser* only denoises"),
        ("width", positive_int, "channels of the first stage, a multiple of 8"),
        ("stem", STEMS, "imagenet: reduce the resolution by 4 first"),
        ("head", HEADS, "how the density comes out of the features (default: log-energy; of jem linear, and no other)"),
        ("norm", NORMS, "group normalization that keeps the scale of its input, or not"),
        ("homogeneous", True, "make the score exactly homogeneous in the centred image"),
        ("mean", nonnegative_float, "value that the model subtracts from images; None: the mean of each channel"),
    ),
    "objective": (
        (
            "objective",
            OBJECTIVES,
            "which terms to train on (default: both, if the model can); jem: a joint energy model, to compare",
        ),
        ("lambda", nonnegative_float, "weight of denoising score matching against cross-entropy"),
        ("final_lambda", nonnegative_float, "value that lambda moves to, linearly over the run (default: it stays)"),
        ("sigma_law", LAWS, "distribution of the noise level"),
        ("sigma_low", noise_level, "lowest noise level, for images in [0, 1]: 0.1 or 25/255"),
        ("sigma_high", noise_level, "highest noise level, or the only one"),
        ("clean_share", fraction, "share of images that are left without noise"),
        ("clean", CLEAN_LAWS, "which: stratified, as many in every step, or independent, each by a draw of its own"),
        ("label_smoothing", fraction, "label smoothing of the cross-entropy"),
    ),
    "joint energy model (--objective jem); lengths are those of images in [-1, 1], as in the paper": (
        (
            "jem_start",
            STARTS,
            "what chains start from: a normal distribution with the moments of images, or uniform noise",
        ),
        ("jem_steps", positive_int, "Langevin steps of a chain per training step"),
        ("jem_step_size", positive_float, "factor of the score in a Langevin step"),
        ("jem_noise", nonnegative_float, "standard deviation of the noise of a Langevin step"),
        ("jem_input_noise", nonnegative_float, "standard deviation of the noise that training images get"),
        ("jem_buffer", positive_int, "most chains that are kept; never more than training images"),
        ("jem_restart", fraction, "probability that a chain starts afresh"),
    ),
    "recipe": (
        ("recipe", NAMED, "defaults of all other options, in place of those of the data set"),
        ("epochs", positive_int, "passes over the training images"),
        ("steps", positive_int, "length in steps instead of epochs"),
        ("optimizer", OPTIMIZERS, "muon: orthogonalized momentum for the filters between features, AdamW for all else"),
        ("learning_rate", positive_float, "peak of the cosine schedule"),
        ("warmup", whole_number, "steps of linear warm-up"),
        ("weight_decay", nonnegative_float, "weight decay of filters and matrices"),
        ("clip", nonnegative_float, "largest norm of the gradient; 0: do not clip"),
        ("ema", fraction, "decay of the average of the weights, which is what the run delivers"),
    ),
}
# Settings that have another name on the command line.
FIELDS = {"lambda": "denoising_weight", "final_lambda": "final_denoising_weight"}


def training_parser() -> argparse.ArgumentParser:
    """Return the parser; what belongs to the run is a field of Settings, absent where it was not given."""
    parser = make_parser("cdn.train", DESCRIPTION, epilog=EXAMPLES)
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    run, data = groups["run"], groups["data"]
    run.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: a dated one under runs/)")
    run.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="continue RUN (or --out) from its last checkpoint, with the settings it was started with",
    )
    run.add_argument(
        "--profile",
        action="store_true",
        help="first measure the time and bytes of each phase of a step, and the peak of memory",
    )
    data.add_argument("--download", action="store_true", help="fetch and check the official CIFAR-10 archive")
    defaults = Settings()
    for title, rows in GROUPS.items():
        for name, kind, text in rows:
            _add(groups[title], name, kind, text, defaults)
    return parser


def _add(group: argparse._ArgumentGroup, name: str, kind: Any, text: str, defaults: Settings) -> None:
    """Add the option of a setting, with its default in the help text; * marks those of the digits."""
    field = FIELDS.get(name, name)
    mark = "*" if getattr(Settings, field) is None and field in RECIPES["digits"] else ""
    shown = "" if getattr(Settings, field) is None and not mark else f" (default: {getattr(defaults, field)}{mark})"
    how: dict[str, Any] = dict(choices=kind)
    if kind is bool:
        how = dict(action=argparse.BooleanOptionalAction)
    elif kind is True:
        how = dict(action="store_true")
    elif callable(kind):
        how = dict(type=kind, metavar="DIR" if name == "data_dir" else "L" if "lambda" in name else None)
    flag = "--" + name.replace("_", "-")
    group.add_argument(flag, dest=field, default=argparse.SUPPRESS, help=text + shown, **how)
