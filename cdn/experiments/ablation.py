"""Choose the defaults: train many small variants on crops of CIFAR-10 and tabulate what each choice costs.

    python -m cdn.experiments.ablation --data-dir DIR --out runs/ablation [--only NAME ...] [--seeds 0 1]

Every run is one line of OUT/ablation.jsonl; finished ones are not repeated, so the sweep can be interrupted, and two
processes with different ``--seeds`` can share the work. ``--table`` prints the tables of docs/ablations.md.
"""
import argparse
import json
import time
from pathlib import Path

import torch

from cdn_kernels import reference as ops
from cdn_kernels.noise import Noise, NoiseLevels

from ..data import augment, batch_indices, channel_mean, load_dataset
from ..density import denoise
from ..model import DirectDenoiser, GradResNet
from ..objective import joint_loss
from ..training.recipe import learning_rate, make_optimizer

CROP = 16
BASE = dict(kind="gradresnet", head="log-energy", norm="scale-preserving", homogeneous=False, denoising_weight=1.0,
            classification_weight=1.0, clean_share=0.0, clip=1.0, optimizer="adamw", peak=3e-3, weight_decay=0.01, steps=1600,
            label_smoothing=0.0)
VARIANTS = {f"{head}, {norm}": dict(head=head, norm=norm)
            for norm in ("scale-preserving", "plain") for head in ("log-energy", "quadratic", "linear")}
VARIANTS |= {
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


def train(data, options, seed):
    """Train one variant and return its model and the seconds it took."""
    torch.manual_seed(seed)
    mean = channel_mean(data.train, 1000)
    if options["kind"] == "denoiser":
        model = DirectDenoiser(width=32, blocks=(1, 1, 1, 1), mean=mean)
    else:
        model = GradResNet(data.num_classes, width=32, blocks=(1, 1, 1, 1), head=options["head"],
                           norm=options["norm"], homogeneous=options["homogeneous"], mean=mean)
    optimizer = make_optimizer(model, options["optimizer"], options["peak"], options["weight_decay"])
    levels = NoiseLevels(clean_share=options["clean_share"])
    weights = {k: options[k] for k in ("denoising_weight", "classification_weight", "label_smoothing")}
    start = time.perf_counter()
    for step in range(options["steps"]):
        x, labels = data.train.load(batch_indices(len(data.train), 64, step, seed))
        x = augment(x, seed, step, flip=True, crop_size=CROP).float().div(255)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = joint_loss(model, x, labels, levels, Noise(seed, step), **weights)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip"], foreach=True)
        if not torch.isfinite(norm):
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options["steps"], options["peak"], 100)
        optimizer.step()
    return model, time.perf_counter() - start


def measure(model, data, options):
    """Return accuracies (%) on all test images, and denoising figures on the first 1,024 exact ones, centre crops."""
    low = (32 - CROP) // 2
    images, labels = data.test.load(torch.arange(len(data.test)))
    x = images[:, :, low:low + CROP, low:low + CROP].float().div(255)
    levels = NoiseLevels()
    noisy, _ = ops.sample_noise(x, levels, Noise(1))
    result = {}
    if options["classification_weight"]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for name, y in (("accuracy_clean", x), ("accuracy_noisy", noisy)):
                hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(y.split(500), labels.split(500)))
                result[name] = 100 * hits / len(x)
    if options["denoising_weight"]:
        x = x[data.test.exact][:1024]
        for sigma in (15, 25, 50):
            y, _ = ops.sample_noise(x, sigma / 255, Noise(2))
            error = (denoise(model, y, sigma / 255) - x).square().flatten(1).mean(1)
            result[f"psnr_{sigma}"] = float(-10 * error.log10().mean())
        y, sigma = ops.sample_noise(x, levels, Noise(3))
        error = (denoise(model, y, sigma) - x).square().flatten(1).mean(1)
        result["denoising"] = float((error / sigma.square()).mean())
    return result


def table(rows):
    """Return a Markdown table of the runs, the seeds side by side."""
    columns = [("accuracy_clean", "{:.1f}"), ("accuracy_noisy", "{:.1f}"), ("denoising", "{:.3f}"),
               ("psnr_15", "{:.2f}"), ("psnr_25", "{:.2f}"), ("psnr_50", "{:.2f}"), ("seconds", "{:.0f}")]
    lines = ["| variant | seeds | steps | accuracy clean % | accuracy noisy % | denoising loss | PSNR 15 | 25 | 50 "
             "| seconds |", "|---|---|---|---|---|---|---|---|---|---|"]
    for name in VARIANTS:
        runs = sorted((r for r in rows if r["name"] == name), key=lambda r: r["seed"])
        if runs:
            cells = [" / ".join(_cell(r[key], f) for r in runs if key in r) or "-" for key, f in columns]
            seeds = " / ".join(str(r["seed"]) for r in runs)
            lines.append(f"| {name} | {seeds} | {runs[0]['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value, form):
    # A run that blew up should look like it, not fill the line with digits.
    return form.format(value) if abs(value) < 1e4 else f"{value:.0e}"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m cdn.experiments.ablation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of the CIFAR-10 distribution")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help="variants to run (default: all); one of: " + "; ".join(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=BASE["steps"])
    parser.add_argument("--table", action="store_true", help="only print the table of what has been run")
    args = parser.parse_args(argv)
    log = args.out / "ablation.jsonl"
    read = lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if args.table:
        print(table(read()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset("cifar10", args.data_dir)
    for name in args.only:
        for seed in args.seeds:
            if any((r["name"], r["seed"], r["steps"]) == (name, seed, args.steps) for r in read()):
                continue
            options = BASE | VARIANTS[name] | dict(steps=args.steps)
            model, seconds = train(data, options, seed)
            row = dict(name=name, seed=seed, seconds=round(seconds, 1), threads=torch.get_num_threads(),
                       torch=torch.__version__, **options, **measure(model, data, options))
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
