"""Sampling: images drawn from the prior that a trained denoiser implies, and how much they are like images.

    python -m cdn.experiments.sampling runs/cifar10 --limit 500 --classifier runs/resnet

Two samplers: the stochastic coarse-to-fine ascent of Kadkhodaie & Simoncelli (2021) and annealed Langevin dynamics
(Song & Ermon 2019), unconditional and given the class. Draws the samples (a row per class) and, beside some of them,
the nearest images of the training, so that copies would be seen. The score is a Fréchet distance between features of
the model itself, or of --classifier, pooled from its last stage: not the usual FID, and to be compared with nothing but
the other rows of its table, test images (a floor) and uniform noise (a ceiling). All sets have --limit images, as few
images make the distance larger.
"""

import time

import torch
from torch import Tensor

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import CLASSES, DENOISER, Experiment, Findings, Session
from cdn.files import Results
from cdn.methods.prior.draw import SET, ascent, draw_samples, langevin
from cdn.methods.prior.likeness import agreement, judge_sets
from cdn.noise_keys import SAMPLING, UNIFORM_IMAGES
from cdn.pictures.samples import nearest_figure, samples_figure, samples_table


def measure(session: Session) -> Findings:
    """Draw sets of samples, and measure how much they are like images."""
    args, run, device, progress = session.args, session.run, session.device, session.progress
    for name in ("step", "beta", "langevin_step"):
        if getattr(args, name) > 1:
            raise CDNError(f"--{name.replace('_', '-')}: expected a number in (0, 1], got {getattr(args, name)}")
    if args.levels < 2:
        raise CDNError(f"--levels: expected at least 2 noise levels, got {args.levels}")
    judge = session.open(args.classifier, CLASSES).model if args.classifier else run.model
    test, _ = session.test_images()
    if len(test) < 2:
        raise CDNError(f"--limit: expected at least 2 images, whose features can vary, got {len(test)}")
    count, classes, shape = len(test), len(run.dataset.classes), run.dataset.shape
    conditions: dict[str, Tensor | None] = {"": None}
    if run.has_classes:
        conditions[", given the class"] = torch.arange(count, device=device) % classes
    samplers = {
        "ascent": lambda: ascent(run.levels, step=args.step, beta=args.beta, limit=args.step_limit, progress=progress),
        "langevin": lambda: langevin(
            run.levels, step=args.langevin_step, count=args.levels, repeats=args.repeats, progress=progress
        ),
    }
    how = dict(sigma=run.levels.high, guidance=args.guidance, batch_size=args.batch_size, device=device)
    rows: dict[str, Results] = {}
    samples: dict[str, Tensor] = {}
    for number, (method, (suffix, label)) in enumerate((m, c) for m in args.methods for c in conditions.items()):
        start, key = time.perf_counter(), SAMPLING.key(args.seed, SET * number)
        with session.evaluating():
            images, steps = draw_samples(samplers[method](), run.model, shape, count, label, key, **how)
        samples[method + suffix] = images
        agreed = agreement(judge, images, label, args.precision, args.batch_size)
        rows[method + suffix] = dict(steps=steps, seconds=time.perf_counter() - start, agreement=agreed)
    noise = torch.rand(test.shape, generator=UNIFORM_IMAGES.generator(args.seed)).to(device)
    sets = samples | {"test images": test, "uniform noise": noise}
    train = run.dataset.train
    reference, _ = session.images(train, args.reference)
    flip = bool(run.config.training.get("flip"))
    with session.evaluating(judge):
        found, nearest = judge_sets(judge, sets, reference, train, flip, args.batch_size)
    rows = {name: rows.get(name, {}) | found[name] for name in sets}
    by = args.classifier or session.name
    about = f"{session.name}: {count} images of each kind, features of {by}, chance of agreement 1/{classes}"
    grid = lambda: samples_figure(samples, run.dataset.classes)
    figures = {"picture.png": grid, "nearest.png": lambda: nearest_figure(sets, nearest)}
    results = dict(count=count, features=str(by), chance=1 / classes, sets=rows)
    return Findings(results, (about, samples_table(rows)), figures)


main = Experiment("sampling", __doc__, measure, needs=(DENOISER,), batch_size=100)

if __name__ == "__main__":
    run_command(main)
