"""Choose the defaults: train many small variants on CIFAR-10 and tabulate what each choice costs.

    python -m cdn.experiments.ablation --data-dir DIR --out runs/ablation [--study recipe] [--only NAME ...] [--seeds 0]

The study "model" changes one thing at a time in a shallow network on small crops; "recipe" compares optimizers and
weights of the two terms on whole images, in the network that docs/results.md trains longer.

Every run is one line of OUT/STUDY.jsonl; finished ones are not repeated, so the sweep can be interrupted, and two
processes with different ``--seeds`` can share the work. ``--table`` prints the tables of docs/ablations.md.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdn.cli.arguments import run_command, seed_number
from cdn.data import Dataset, augment, batch_indices, channel_mean, load_dataset
from cdn.density import denoise
from cdn.model import DirectDenoiser, GradResNet
from cdn.model.finite import decided, json_text
from cdn.model.head import DEEP_ENERGY
from cdn.objective import joint_step
from cdn.run_folder.journal import Journal
from cdn.run_folder.weights import make_folder
from cdn.training.recipe import learning_rate, make_optimizer
from cdn_kernels import reference as ops
from cdn_kernels.noise import Noise, NoiseLevels

# All options of a run, or those in which a variant differs.
Options = dict[str, Any]
MODEL: Options = dict(
    kind="gradresnet",
    width=32,
    blocks=(1, 1, 1, 1),
    head="log-energy",
    norm="scale-preserving",
    homogeneous=False,
    deep_energy=1.0,
    crop_size=16,
    crop_padding=0,
    denoising_weight=1.0,
    classification_weight=1.0,
    clean_share=0.0,
    label_smoothing=0.0,
    clip=1.0,
    optimizer="adamw",
    fixed_norm=True,
    peak=3e-3,
    weight_decay=0.01,
    steps=1600,
)
MODEL_VARIANTS: dict[str, Options] = {
    f"{head}, {norm}": dict(head=head, norm=norm)
    for norm in ("scale-preserving", "plain")
    for head in ("log-energy", "quadratic", "linear")
}
MODEL_VARIANTS |= {
    "homogeneous": dict(homogeneous=True),
    "cross-entropy only": dict(denoising_weight=0.0),
    "cross-entropy only, linear, plain": dict(denoising_weight=0.0, head="linear", norm="plain"),
    "denoising only": dict(classification_weight=0.0),
    "direct denoiser": dict(kind="denoiser", classification_weight=0.0),
    "lambda 0.1": dict(denoising_weight=0.1),
    "lambda 0.3": dict(denoising_weight=0.3),
    "lambda 3": dict(denoising_weight=3.0),
    "clean share 0.25": dict(clean_share=0.25),
    "clean share 0.5": dict(clean_share=0.5),
    "clip 0.3": dict(clip=0.3),
    "clip 3": dict(clip=3.0),
    "no clipping": dict(clip=float("inf")),
    "learning rate 1e-3": dict(peak=1e-3),
    "learning rate 6e-3": dict(peak=6e-3),
    "weight decay 0.1": dict(weight_decay=0.1),
    "label smoothing 0.1": dict(label_smoothing=0.1),
}
RECIPE: Options = MODEL | dict(
    width=24,
    blocks=(2, 2, 2, 2),
    crop_size=None,
    crop_padding=4,
    deep_energy=0.1,
    steps=600,
    optimizer="muon",
    denoising_weight=12.0,
    clean_share=0.5,
)
_ADAMW: Options = dict(optimizer="adamw")
_DENOISER: Options = dict(kind="denoiser", classification_weight=0.0, denoising_weight=1.0, clean_share=0.0)
RECIPE_VARIANTS: dict[str, Options] = {
    "muon, fixed norms, lambda 12": {},
    "lambda 4": dict(denoising_weight=4.0),
    "lambda 1": dict(denoising_weight=1.0),
    "free norms": dict(fixed_norm=False),
    "deep energies start at full size": dict(deep_energy=1.0),
    "learning rate 1.5e-3": dict(peak=1.5e-3),
    "learning rate 6e-3": dict(peak=6e-3),
    "adamw, lambda 12": _ADAMW,
    "adamw, lambda 0.6": _ADAMW | dict(denoising_weight=0.6),
    "cross-entropy only": dict(denoising_weight=0.0),
    "cross-entropy only, free norms": dict(denoising_weight=0.0, fixed_norm=False),
    "cross-entropy only, adamw": _ADAMW | dict(denoising_weight=0.0),
    "denoising only": dict(classification_weight=0.0, denoising_weight=1.0),
    "direct denoiser": _DENOISER,
    "direct denoiser, adamw": _DENOISER | _ADAMW,
}
STUDIES: dict[str, tuple[Options, dict[str, Options]]] = {
    "model": (MODEL, MODEL_VARIANTS),
    "recipe": (RECIPE, RECIPE_VARIANTS),
}


def train(data: Dataset, options: Options, seed: int) -> tuple[nn.Module, float]:
    """Train one variant and return its model and the seconds it took."""
    torch.manual_seed(seed)
    mean = channel_mean(data.train, 1000)
    model: DirectDenoiser | GradResNet
    if options["kind"] == "denoiser":
        model = DirectDenoiser(width=options["width"], blocks=options["blocks"], mean=mean)
    else:
        model = GradResNet(
            data.num_classes,
            width=options["width"],
            blocks=options["blocks"],
            head=options["head"],
            norm=options["norm"],
            homogeneous=options["homogeneous"],
            mean=mean,
        )
        with torch.no_grad():
            for energy in list(model.head.maps)[1:]:
                energy.mul_(options["deep_energy"] / DEEP_ENERGY)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it without this one
    optimizer = make_optimizer(model, options["optimizer"], options["peak"], options["weight_decay"])
    for group in optimizer.param_groups:
        group["fixed_norm"] = group.get("fixed_norm", False) and options["fixed_norm"]
    levels = NoiseLevels(clean_share=options["clean_share"])
    weights = {k: options[k] for k in ("denoising_weight", "classification_weight", "label_smoothing")}
    start = time.perf_counter()
    for step in range(options["steps"]):
        x, labels = data.train.load(batch_indices(len(data.train), 64, step, seed))
        x = augment(x, seed, step, flip=True, crop_size=options["crop_size"], crop_padding=options["crop_padding"])
        x = x.float().div(255).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            joint_step(model, x, labels, levels, Noise(seed, step), **weights)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip"], foreach=True)
        if not torch.isfinite(norm):
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options["steps"], options["peak"], 100)
        optimizer.step()
    return model, time.perf_counter() - start


def measure(model: nn.Module, data: Dataset, options: Options) -> dict[str, float]:
    """Return accuracies (%) on all test images, and denoising figures on the first 1,024 exact ones, centre crops."""
    images, labels = data.test.load(torch.arange(len(data.test)))
    side = options["crop_size"] or images.shape[-1]
    low = (images.shape[-1] - side) // 2
    x = images[:, :, low : low + side, low : low + side].float().div(255)
    levels = NoiseLevels()
    noisy, _ = ops.sample_noise(x, levels, Noise(1))
    result = {}
    if options["classification_weight"]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for name, y in (("accuracy_clean", x), ("accuracy_noisy", noisy)):
                hits = sum(int((decided(model(a)) == b).sum()) for a, b in zip(y.split(500), labels.split(500)))
                result[name] = 100 * hits / len(x)
    if options["denoising_weight"]:
        x = x[data.test.exact][:1024]
        for sigma in (15, 25, 50):
            y, _ = ops.sample_noise(x, sigma / 255, Noise(2))
            error = (denoise(model, y, sigma / 255) - x).square().flatten(1).mean(1)
            result[f"psnr_{sigma}"] = float(-10 * error.log10().mean())
        y, drawn = ops.sample_noise(x, levels, Noise(3))
        error = (denoise(model, y, drawn) - x).square().flatten(1).mean(1)
        result["denoising"] = float((error / drawn.square()).mean())
    return result


def table(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> str:
    """Return a Markdown table of the runs, the seeds side by side."""
    columns = [
        ("accuracy_clean", "{:.1f}"),
        ("accuracy_noisy", "{:.1f}"),
        ("denoising", "{:.3f}"),
        ("psnr_15", "{:.2f}"),
        ("psnr_25", "{:.2f}"),
        ("psnr_50", "{:.2f}"),
        ("seconds", "{:.0f}"),
    ]
    lines = [
        (
            "| variant | seeds | steps | accuracy clean % | accuracy noisy % | denoising loss | PSNR 15 | 25 | 50 "
            "| seconds |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        runs = sorted((r for r in rows if r["name"] == name), key=lambda r: r["seed"])
        if runs:
            cells = [" / ".join(_cell(r[key], f) for r in runs if key in r) or "-" for key, f in columns]
            seeds = " / ".join(str(r["seed"]) for r in runs)
            lines.append(f"| {name} | {seeds} | {runs[0]['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float, form: str) -> str:
    # A run that blew up should look like it, not fill the line with digits.
    return form.format(value) if abs(value) < 1e4 else f"{value:.0e}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m cdn.experiments.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", help="folder of the CIFAR-10 distribution")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--study", choices=STUDIES, default="model", help="(default: model)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="variants to run (default: all); "
        + " ".join(f"{study}: {'; '.join(variants)}." for study, (_, variants) in STUDIES.items()),
    )
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0, 1])
    parser.add_argument(
        "--steps",
        type=int,
        help="(default: " + ", ".join(f"{base['steps']} for {study}" for study, (base, _) in STUDIES.items()) + ")",
    )
    parser.add_argument("--table", action="store_true", help="only print the table of what has been run")
    args = parser.parse_args(argv)
    base, variants = STUDIES[args.study]
    steps = args.steps or base["steps"]
    for name in args.only or ():
        if name not in variants:
            parser.error(f"--only: {name!r} is no variant of the study {args.study!r}: {'; '.join(variants)}")
    log = args.out / f"{args.study}.jsonl"
    if args.table:
        print(table(Journal(log).rows, variants))
        return
    make_folder(args.out)
    data = load_dataset("cifar10", args.data_dir)
    for name in args.only or variants:
        for seed in args.seeds:
            journal = Journal(log)  # another process may have added rows
            if any((r["name"], r["seed"], r["steps"]) == (name, seed, steps) for r in journal.rows):
                continue
            options = base | variants[name] | dict(steps=steps)
            model, seconds = train(data, options, seed)
            row = dict(
                name=name,
                seed=seed,
                seconds=round(seconds, 1),
                threads=torch.get_num_threads(),
                torch=torch.__version__,
                **options,
                **measure(model, data, options),
            )
            journal.append(row)
            print(json_text(row), flush=True)


if __name__ == "__main__":
    run_command(main)
