"""Make a model that comes with the package of a trained run: cdn/shipped/NAME.

    python -m benchmarks.ship runs/digits digits --command "python -m cdn.train --out runs/digits"

Weights are rounded to 16 bits and what was calibrated stays in float32. Everything on the card was measured with the
rounded weights, on the test images. Prints the checksum that cdn/run_folder/shipped.py is to hold.
"""

import argparse
import datetime
import hashlib
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.evaluation import SIGMAS, evaluate
from cdn.files import json_text, make_folder, write_atomically
from cdn.model.inputs import sigma_key, sigma_text
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
        data="The handwritten digits that scikit-learn carries (8x8 pixels, 17 grey levels), from E. Alpaydin and "
        "C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY 4.0. "
        "1,437 images for training, 360 for the test, which the figures are of.",
        limits="It knows ten digits of 8x8 pixels in the middle of a grey image, written white on black, and nothing "
        "else: other images get a digit too. It is there for trying the package, not for reading handwriting.",
    )
}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished training run")
    parser.add_argument("name", choices=ABOUT, help="name of the model")
    parser.add_argument("--command", required=True, help="what trained it")
    parser.add_argument("--data-dir", help="folder of the data (default: that of the training)")
    args = parser.parse_args(argv)
    folder = FOLDER / args.name
    make_folder(folder)
    run = open_run(args.run, data_dir=args.data_dir)
    last = Journal(run.path / METRICS).rows[-1]
    if (last["kind"], last["step"]) != ("evaluation", run.config.total_steps):
        raise CDNError(f"{args.run} stands at step {last['step']} of {run.config.total_steps}: let it finish")
    round_weights(run.model)
    weights = folder / WEIGHTS
    save_model(weights, run.model, run.model.classes, run.config.objective)
    if weights.stat().st_size > LARGEST:
        raise CDNError(f"{weights} has {weights.stat().st_size:,} bytes, of at most {LARGEST:,}")
    write_config(folder, run.config.with_data_dir(None))
    facts = dict(name=args.name, command=args.command) | measured(run, last)
    write_atomically(folder / CARD, (json_text(facts, indent=2) + "\n").encode())
    write_atomically(folder / CARD_TEXT, card_text(facts).encode())
    print(f'"{args.name}": "{hashlib.sha256(weights.read_bytes()).hexdigest()}"')


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


def measured(run: Run, last: Row) -> dict[str, Any]:
    """Return what the card says of a run of rounded weights that was trained on this machine, from its last row too."""
    report = evaluate(
        run.model.float(), run.dataset.test, levels=run.levels, with_ssim=True, objective=run.config.objective
    )
    about = machine.describe("cpu")
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


def card_text(facts: dict[str, Any]) -> str:
    """Return the card of a model as Markdown."""
    about, figures = ABOUT[facts["name"]], facts["figures"]
    header = ["noise level", *(title for title, *_ in COLUMNS)]
    rows = [
        [
            sigma_text(sigma),
            *(form.format(scale * figures[f"{key}_{sigma_key(sigma)}"]) for _, key, form, scale in COLUMNS),
        ]
        for sigma in SIGMAS
    ]
    trained = (
        f"{facts['parameters']:,} parameters, rounded to 16 bits. Trained by `{facts['command']}`: {facts['steps']:,} "
        f"steps in {facts['seconds']:,} seconds on {facts['threads']} threads of {facts['hardware']}, torch "
        f"{facts['torch']}, {facts['date']}, commit `{facts['commit']}`."
    )
    found = (
        f"Measured with the rounded weights: accuracy {figures['accuracy']:.2%} on {figures['classified']:,} clean "
        f"test images, calibration error {figures['ece']:.4f}; with noise, denoised knowing its level:"
    )
    return f"""# {about["title"]}: `{facts["name"]}`

<!-- Written by python -m benchmarks.ship, of {CARD}. -->

{fill(about["data"])}

{fill(trained)}

{fill(found)}

{text_table(header, rows)}

## What it cannot do

{fill(about["limits"])}
"""


def fill(text: str) -> str:
    """Return a paragraph in lines."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    run_command(main)
