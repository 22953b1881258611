"""Measure what float32 leaves of the gradients of cross-entropy when logits are log-densities.

    python -m benchmarks.rounding runs/cifar10

Everything is compared with float64. The first table is of input gradients, one per test image, of the images that the
model is sure of and of the others: with a network in float64 and a loss in float32, then with both in float32. The
second is of the parameter gradient of a batch, as in training: with fresh weights, and of the first and the surest test
images with those of the run.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from cdn.cli.arguments import positive_int
from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.model import build
from cdn.pictures.tables import text_table
from cdn.run_folder.opened import open_run
from cdn_kernels import Noise, cross_entropy, using
from cdn_kernels import reference as ops

BATCH, SURE = 64, 1e-3
TORCH, OURS = "F.cross_entropy", "cdn_kernels.cross_entropy"
LOSSES = {
    TORCH: F.cross_entropy,
    OURS: cross_entropy,
    "F.cross_entropy of logits - max": lambda logits, labels, **options: F.cross_entropy(
        logits - logits.detach().amax(1, keepdim=True), labels, **options
    ),
}


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: that of the training)")
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        default=256,
        help="use the first N test images (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    run = open_run(args.run, data_dir=args.data_dir)
    if not run.has_classes:
        raise CDNError(f"{args.run}: was trained to denoise only, it has no classes")
    images, labels = run.dataset.test.load(torch.arange(min(args.limit, len(run.dataset.test))))
    x = images.float() / 255
    with using("reference"):
        doubt = input_gradients(run.model, x, labels)
        if run.has_density:
            print()
            parameter_gradients(run, x, labels, doubt)


def input_gradients(model, x, labels):
    """Print the table of input gradients and return ``1 - p(label)`` of every image."""
    exact, cells = copy.deepcopy(model).double(), {}
    ways = {
        "": (torch.Tensor.double, F.cross_entropy),
        "logits rounded, all else float64": (lambda logits: logits.float().double(), F.cross_entropy),
        **{f"float32 loss: {name}": (torch.Tensor.float, loss) for name, loss in LOSSES.items()},
    }
    for part, classes in zip(x.split(BATCH), labels.split(BATCH)):
        found = gradients(exact, part.double(), classes, ways)
        found |= gradients(
            model, part, classes, {f"all float32: {name}": (torch.Tensor.float, LOSSES[name]) for name in (TORCH, OURS)}
        )
        for name, gradient in found.items():
            cells.setdefault(name, []).append(gradient)
    logits = torch.cat([exact(part.double()).detach() for part in x.split(BATCH)])
    doubt = -torch.expm1(-cross_entropy(logits, labels, reduction="none"))
    cells = {name: torch.cat(parts) for name, parts in cells.items()}
    wanted = cells.pop("")
    groups = {name: chosen for name, chosen in (("sure", doubt < SURE), ("others", doubt >= SURE)) if chosen.any()}
    header = [
        "error of the input gradient",
        *(
            f"{statistic}, {name} ({int(chosen.sum())})"
            for name, chosen in groups.items()
            for statistic in ("median", "largest", "least cosine")
        ),
    ]
    rows = []
    for name, gradient in cells.items():
        error = (gradient - wanted).norm(dim=1) / wanted.norm(dim=1)
        cosine = F.cosine_similarity(gradient, wanted)
        rows.append(
            [name]
            + [
                text
                for chosen in groups.values()
                for text in (
                    f"{error[chosen].median():.1e}",
                    f"{error[chosen].max():.1e}",
                    f"{cosine[chosen].min():.4f}",
                )
            ]
        )
    print(f"mean logit {logits.mean():.0f}; sure: 1 - p(label) < {SURE:g}")
    print(text_table(header, rows))
    return doubt


def gradients(model, x, labels, ways):
    """Return the input gradients [N, d] of cross-entropy, float64, in several ways.

    Args:
        model: a model, in the dtype of x.
        x: images [N, C, H, W].
        labels: [N].
        ways: by name a function that the logits go through, and the loss of what comes out.
    """
    y = x.clone().requires_grad_()
    logits, found = model(y), {}
    for name, (rounded, loss) in ways.items():
        seen = rounded(logits.detach()).requires_grad_()
        (weights,) = torch.autograd.grad(loss(seen, labels, reduction="sum"), seen)
        (gradient,) = torch.autograd.grad(logits, y, weights.to(x.dtype), retain_graph=True)
        found[name] = gradient.flatten(1).double()
    return found


def parameter_gradients(run, x, labels, doubt):
    """Print the table of parameter gradients."""
    weight = run.config.training["denoising_weight"]
    surest = doubt.argsort()[:BATCH]
    torch.manual_seed(0)
    fresh = build(run.config.model)
    cases = {
        "fresh weights": (fresh, slice(BATCH)),
        "first images": (run.model, slice(BATCH)),
        "surest images": (run.model, surest),
    }
    rows = []
    for name, (model, chosen) in cases.items():
        for objective, denoising in (("cross-entropy", 0.0), (f"and {weight:g} x denoising", weight)):
            exact = parameter_gradient(
                copy.deepcopy(model).double(), x[chosen].double(), labels[chosen], F.cross_entropy, denoising
            )
            errors = [
                parameter_gradient(model, x[chosen], labels[chosen], LOSSES[loss], denoising) - exact
                for loss in (TORCH, OURS)
            ]
            rows.append(
                [
                    name,
                    objective,
                    f"{doubt[chosen].median():.0e}" if model is run.model else None,
                    f"{exact.norm():.2g}",
                    *(f"{error.norm() / exact.norm():.1e}" for error in errors),
                ]
            )
    print(text_table(["batch", "objective", "median 1 - p", "norm", f"error, {TORCH}", f"error, {OURS}"], rows))


def parameter_gradient(model, x, labels, loss, denoising_weight):
    """Return the gradient of cross-entropy, clean, plus that of denoising at sigma 0.1, as float64 [P]."""
    total = loss(model(x), labels)
    if denoising_weight:
        eps = ops.standard_normal(x.shape, Noise(0), torch.float32).to(x.dtype)
        y, sigma = ops.sample_noise(x, 0.1, eps)
        score = ops.score(lambda y: ops.logsumexp(model(y)), y, create_graph=True)
        total = total + denoising_weight * ops.denoising_loss(score, sigma, eps)
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(total, list(model.parameters()))])


if __name__ == "__main__":
    run_command(main)
