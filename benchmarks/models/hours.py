"""Say how many hours of a processor the trainings of the shipped models take: the plan before they are begun.

    python -m benchmarks.models.hours [NAME ...] --record docs/records/hours.json

Times some steps of each training here, on the data that its command names, and multiplies. Trainings on ImageNet are
computed: a step is timed on few images of random numbers. What was recorded of other trainings stays in the record.
"""

import datetime
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import cdn_kernels
from benchmarks.models.ship import threads_text
from benchmarks.models.trainings import COMPUTED, IMAGENET_CLASSES, IMAGENET_IMAGES, TRAININGS, command, settings
from cdn.cli.arguments import make_parser
from cdn.cli.process import run_command
from cdn.data import Dataset, ImageSplit, load_dataset
from cdn.data.sampler import steps_per_epoch
from cdn.files import json_text, write_atomically
from cdn.model import GradResNet
from cdn.pictures.tables import text_table
from cdn.run_folder.forms import read_json
from cdn.training.trainer import Trainer
from cdn_kernels import machine

WARM, TIMED = 4, 9
CLEAN_UNITS, NOISY_UNITS = 3, 6
FEW = 8  # images of a step that is timed to compute a larger one


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    known = [*TRAININGS, *COMPUTED]
    parser = make_parser("benchmarks.models.hours", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--record", type=Path, metavar="JSON", help="file to keep what is found in")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(known):
        parser.error(f"NAME: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    cdn_kernels.keep_pages()
    rows = read_json(args.record) if args.record and args.record.exists() else {}
    for name in args.names or known:
        rows[name] = measured(name)
        if args.record:
            ordered = {key: rows[key] for key in known if key in rows}
            write_atomically(args.record, (json_text(ordered, indent=1) + "\n").encode())
    print(hours_table(rows))


def measured(name: str) -> dict[str, Any]:
    """Return the number of steps of a training, what one takes here, and on what.

    What only is computed is timed on fewer images of noise, and multiplied.
    """
    chosen = settings(name)
    whole = chosen.batch_size
    if name in COMPUTED:
        # Parts of photographs are read from files. Without its name, a recipe fills in no others.
        chosen = replace(chosen, batch_size=FEW, recipe=None, crop_area=None)
        data = noise_images(chosen.image_size or 0)
    else:
        data = load_dataset(chosen.data, chosen.data_dir, image_size=chosen.image_size)
    steps = chosen.total_steps(steps_per_epoch(len(data.train), whole))
    trainer = Trainer(chosen, data, steps, torch.device("cpu"))
    seconds = []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        trainer.advance()
        seconds.append(time.perf_counter() - start)
    about = machine.describe("cpu")
    return dict(
        command=command(name),
        computed=name in COMPUTED,
        steps=steps,
        images=steps * whole,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        step_seconds=statistics.median(seconds[WARM:]) * whole / chosen.batch_size,
        step_operations=counted(trainer, whole),
        date=datetime.date.today().isoformat(),
        machine={key: about[key] for key in ("device", "threads", "capability", "torch", "commit")},
    )


def counted(trainer: Trainer, images: int) -> float | None:
    """Return the floating-point operations of the convolutions of a step on so many images, as direct sums.

    A step is a forward, a gradient by the input and one by the weights for a clean image, and twice as much for a noisy
    one, whose score is differentiated. None for networks other than GradResNet.
    """
    model, chosen = trainer.model, trainer.settings
    if not isinstance(model, GradResNet) or chosen.objective == "jem":  # whose chains are not counted
        return None
    h, forward = torch.zeros(1, *trainer.dataset.shape), 0
    with torch.no_grad():
        for part in (*model.trunk.stem, *model.trunk.stages):  # whose convolutions all have the size of what it gives
            h = part(h)
            forward += sum(2 * p.numel() * h[0, 0].numel() for p in part.parameters() if p.dim() == 4)
    noisy = CLEAN_UNITS if chosen.objective == "classification" else NOISY_UNITS
    return images * forward * (chosen.clean_share * CLEAN_UNITS + (1 - chosen.clean_share) * noisy)


def noise_images(side: int) -> Dataset:
    """Return a data set of the size of ImageNet whose images are random numbers."""

    class RandomImages(ImageSplit):
        def _read(self, indices: torch.Tensor) -> torch.Tensor:
            return torch.randint(256, (len(indices), *self.shape), dtype=torch.uint8)

    labels = torch.arange(IMAGENET_IMAGES) % IMAGENET_CLASSES
    split = RandomImages(labels, (3, side, side))
    return Dataset("imagefolder", split, split, tuple(map(str, range(IMAGENET_CLASSES))))


def hours_table(rows: dict[str, Any]) -> str:
    """Return what trainings take as a table."""
    header = ["training", "parameters", "steps", "images", "operations", "a step", "hours", "", "on"]
    cells = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['images']:,}",
            None if row["step_operations"] is None else f"{row['steps'] * row['step_operations']:.1e}",
            f"{1e3 * row['step_seconds']:,.0f} ms",
            f"{row['steps'] * row['step_seconds'] / 3600:,.2f}",
            "computed" if row["computed"] else "timed",
            threads_text(row["machine"]["threads"]) + " of {device} ({capability})".format(**row["machine"]),
        ]
        for name, row in rows.items()
    ]
    return text_table(header, cells)


if __name__ == "__main__":
    run_command(main)
