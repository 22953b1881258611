"""Make a model that comes with the package of a trained run: cdn/shipped/NAME.

    python -m benchmarks.models.ship runs/digits digits
    python -m benchmarks.models.ship runs/photographs photographs --photographs Kodak24

Weights are rounded to 16 bits and what was calibrated stays in float32. Everything on the card was measured with the
rounded weights, on the test images, and on photographs if any are given. Prints the checksum that
cdn/run_folder/shipped.py is to hold.
"""

import datetime
import hashlib
import json
import shutil
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cdn_kernels
from benchmarks.models.trainings import command, departures
from cdn.cli.arguments import make_parser, positive_int
from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.evaluation import SIGMAS, evaluate
from cdn.experiments import photographs
from cdn.experiments.runner import REPORT
from cdn.files import json_text, make_folder, write_atomically
from cdn.model.inputs import sigma_key, sigma_text
from cdn.pictures.photograph_details import means_table
from cdn.pictures.tables import text_table
from cdn.run_folder.config import write_config
from cdn.run_folder.journal import Journal, Row
from cdn.run_folder.names import METRICS, WEIGHTS
from cdn.run_folder.opened import Run, open_run
from cdn.run_folder.shipped import CARD, CARD_TEXT, FOLDER
from cdn.run_folder.weights import save_model
from cdn_kernels import machine

LARGEST = 6 << 20  # bytes of the weights of a model
WIDTH = 120
# Of the table of a card: a title, the name of a figure, its form, and what it is multiplied by.
COLUMNS = (
    ("accuracy (%)", "accuracy_sigma", "{:.2f}", 100),
    ("PSNR noisy (dB)", "psnr_noisy", "{:.2f}", 1),
    ("PSNR denoised (dB)", "psnr", "{:.2f}", 1),
    ("SSIM denoised", "ssim", "{:.4f}", 1),
)
# What each was trained on, under which terms, and what it cannot do.
ABOUT = {
    "digits": dict(
        title="Handwritten digits",
        data="""The handwritten digits that scikit-learn carries (8x8 pixels, 17 grey levels), from E. Alpaydin and C.
        Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY 4.0. 1,437
        images for training, 360 for the test, which the figures are of.""",
        limits="""It knows ten digits of 8x8 pixels in the middle of a grey image, written white on black, and nothing
        else: other images get a digit too. It is there for trying the package, not for reading handwriting.""",
    ),
    "cifar10": dict(
        title="Ten kinds of things",
        data="""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes, from A. Krizhevsky, Learning Multiple
        Layers of Features from Tiny Images, 2009, chosen from images found on the web; its authors ask for that
        citation and state no other terms. 50,000 images for training, 10,000 for the test, which the figures are of;
        noise is taken off those of them that exist losslessly.""",
        limits="""It knows ten classes and gives one of them to every image. It has seen small pictures with one thing
        in the middle: of a larger photograph it sees the central square, reduced to 32x32 pixels. It has not been
        trained to withstand attacks.""",
    ),
    "photographs": dict(
        title="Photographs",
        data="""Patches of 48x48 pixels. 16,000 are pictures of 40 classes of ImageNet (J. Deng et al., 2009, for
        research that is not commercial), JPEG files of 64x64 pixels, reduced. 32,672 are cut from 53 of 58 photographs
        that Debian packages as backgrounds, reduced by three, four and six: mate-backgrounds 1.26.0 and
        plasma-workspace-wallpapers 5.27.5 (GPL-2+), gnome-backgrounds 3.38.0, budgie-backgrounds 3.0 and
        lomiri-wallpapers 20.04.0 (Creative Commons, as their copyright files say). What is no photograph among them was
        left out. None of all that is part of the package. Kodak24 was used for the test only.""",
        limits="""It takes white Gaussian noise off colour photographs, of levels between 5/255 and 127/255. Noise of a
        camera after its processing is not white, and depends on brightness. It knows no classes. Its statistics are
        taken over the whole image, so an image denoised in tiles differs a little.""",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("benchmarks.models.ship", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished training run")
    parser.add_argument("name", choices=ABOUT, help="name of the model")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="whole photographs to measure it on as well")
    parser.add_argument("--data-dir", help="folder of the data (default: that of the training)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="test images to denoise (default: all)")
    args = parser.parse_args(argv)
    cdn_kernels.keep_pages()
    folder = FOLDER / args.name
    run = open_run(args.run, data_dir=args.data_dir)
    if other := departures(args.name, run.config.training):
        raise CDNError(f"{args.run} was not trained by `{command(args.name)}`: it has another {', '.join(other)}")
    last = Journal(run.path / METRICS).rows[-1]
    if (last["kind"], last["step"]) != ("evaluation", run.config.total_steps):
        raise CDNError(f"{args.run} stands at step {last['step']} of {run.config.total_steps}: let it finish")
    about = machine.describe("cpu")  # before the files of the package change
    make_folder(folder)
    round_weights(run.model)
    weights = folder / WEIGHTS
    save_model(weights, run.model, run.model.classes, run.config.objective)
    if weights.stat().st_size > LARGEST:
        raise CDNError(f"{weights} has {weights.stat().st_size:,} bytes, of at most {LARGEST:,}")
    write_config(folder, run.config.with_data_dir(None))
    facts = dict(name=args.name, command=command(args.name)) | measured(run, last, about, args.limit)
    if args.photographs:
        facts["photographs"] = on_photographs(folder, args.photographs)
    write_atomically(folder / CARD, (json_text(facts, indent=2) + "\n").encode())
    write_atomically(folder / CARD_TEXT, card_text(facts).encode())
    print(f'"{args.name}": "{hashlib.sha256(weights.read_bytes()).hexdigest()}"')


def card(name: str) -> dict[str, Any] | None:
    """Return the facts on the card of a model; None for one that was not shipped yet."""
    path = FOLDER / name / CARD
    return json.loads(path.read_text()) if path.exists() else None


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round the parameters of a model to float16, in which they are kept.

    Raises:
        CDNError: one is out of range.
    """
    for name, p in model.named_parameters():
        p.data = p.half()
        if not p.isfinite().all():
            raise CDNError(f"{name} holds a number that is too large for 16 bits")


def measured(run: Run, last: Row, about: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Return what the card says of a run of rounded weights that was trained on this machine, from its last row too."""
    report = evaluate(
        run.model.float(),
        run.dataset.test,
        levels=run.levels,
        with_ssim=True,
        objective=run.config.objective,
        denoising_limit=limit,
    )
    return dict(
        parameters=run.config.parameters,
        steps=run.config.total_steps,
        seconds=round(last["seconds"]),
        date=datetime.date.today().isoformat(),
        hardware=about["device"],
        threads=run.config.threads,
        commit=about["commit"],
        torch=run.config.torch,
        figures=report,
    )


def on_photographs(model: Path, images: Path) -> dict[str, Any]:
    """Return what the experiment on whole photographs finds of a model: their number, and means by noise level."""
    with tempfile.TemporaryDirectory() as place:
        # A copy, since among the models of the package only files with a known checksum are read.
        run, out = Path(place) / model.name, Path(place) / "results"
        shutil.copytree(model, run)
        photographs.main([str(run), "--images", str(images), "--out", str(out)])
        results = json.loads((out / REPORT).read_text())["results"]
    return dict(name=images.name, count=len(results["photographs"]), mean=results["mean"])


def levels_table(facts: dict[str, Any]) -> str:
    """Return a table of the figures of a model by noise level."""
    figures = facts["figures"]
    columns = [column for column in COLUMNS if figures.get(f"{column[1]}_{sigma_key(SIGMAS[0])}") is not None]
    rows = [
        [
            sigma_text(sigma),
            *(form.format(scale * figures[f"{key}_{sigma_key(sigma)}"]) for _, key, form, scale in columns),
        ]
        for sigma in SIGMAS
    ]
    return text_table(["noise level", *(title for title, *_ in columns)], rows)


def threads_text(count: int) -> str:
    """Return a number of threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def trained_text(facts: dict[str, Any]) -> str:
    """Return how large a model is and how it was trained, in sentences."""
    return (
        f"{facts['parameters']:,} parameters, rounded to 16 bits. Trained by `{facts['command']}`: {facts['steps']:,} "
        f"steps in {facts['seconds']:,} seconds on {threads_text(facts['threads'])} of {facts['hardware']}, torch "
        f"{facts['torch']}, {facts['date']}, commit `{facts['commit']}`."
    )


def found_text(facts: dict[str, Any]) -> str:
    """Return what stands over the table of the figures of a model."""
    figures = facts["figures"]
    classes = (
        f"accuracy {figures['accuracy']:.2%} on {figures['classified']:,} clean test images, calibration error "
        f"{figures['ece']:.4f}; with noise, "
        if figures.get("accuracy") is not None
        else f"on {figures['denoised']:,} test images with noise, "
    )
    return f"Measured with the rounded weights: {classes}denoised knowing its level:"


def photographs_text(facts: dict[str, Any]) -> str:
    """Return what a model does to whole photographs, between empty lines; nothing if it was not measured."""
    if "photographs" not in facts:
        return ""
    found = facts["photographs"]
    text = (
        f"On {found['count']} whole photographs ({found['name']}), with the noise level known, and blind, estimated "
        "from the noisy image:"
    )
    return f"\n{fill(text)}\n\n{means_table(found['mean'])}\n"


def card_text(facts: dict[str, Any]) -> str:
    """Return the card of a model as Markdown."""
    about = ABOUT[facts["name"]]
    return f"""# {about["title"]}: `{facts["name"]}`

<!-- Written by python -m benchmarks.models.ship, of {CARD}. -->

{fill(about["data"])}

{fill(trained_text(facts))}

{fill(found_text(facts))}

{levels_table(facts)}
{photographs_text(facts)}
## What it cannot do

{fill(about["limits"])}
"""


def fill(text: str) -> str:
    """Return a paragraph in lines."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    run_command(main)
