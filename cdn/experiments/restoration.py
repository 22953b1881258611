"""Restore test images from a few linear measurements, with the denoiser of a run as the only prior.

    python -m cdn.experiments.restoration runs/cifar10 --precision bf16
    python -m cdn.experiments.restoration runs/digits --problems inpainting deblurring --limit 100 --samples 8

Samples by algorithm 2 of Kadkhodaie & Simoncelli (arXiv 2007.13640) solve five problems with one network that was
trained for none of them. Beside PSNR and SSIM of one sample and of the mean of several stand those of the
pseudo-inverse, the shortest image with the same measurements, and of the one closest to mid-grey. Writes report.json
and picture.png.
"""

import torch

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import DENOISER, Experiment, Findings, Session
from cdn.methods.prior.inverse_problems import restore_several
from cdn.methods.prior.operators import PROBLEMS
from cdn.pictures.restored import SHOWN, restoration_figure, restoration_table


def measure(session: Session) -> Findings:
    """Restore the images from every kind of measurements."""
    args = session.args
    for name in ("step", "beta"):
        if getattr(args, name) == 0:
            raise CDNError(f"--{name}: expected a number in (0, 1], got 0")
    x, _ = session.test_images(exact=True)
    operators, given = {}, dict(block=args.block, ratio=args.ratio, factor=args.factor, blur=args.blur, seed=args.seed)
    for problem in args.problems:
        try:
            operators[problem] = PROBLEMS[problem](tuple(x.shape[1:]), **given)
        except ValueError as error:
            raise CDNError(f"{problem}: {error}") from None
    shown = torch.linspace(0, len(x) - 1, min(SHOWN, len(x))).round().long()
    how = dict(samples=args.samples, seed=args.seed, batch_size=args.batch_size)
    walk = dict(step=args.step, beta=args.beta, stop=args.stop, limit=args.max_steps)
    results, tiles = {}, {}
    total = len(operators) * -(-len(x) // args.batch_size) * args.samples
    with session.evaluating(), torch.no_grad(), session.bar(total=total, unit="restoration") as bar:
        for problem, operator in operators.items():
            bar.set_description(problem)
            results[problem], images = restore_several(session.model, operator, x, **how, **walk, bar=bar)
            tiles[problem] = {title: column[shown] for title, column in images.items()}
    about = f"{len(x)} test images of {session.run.dataset.name}, {args.samples} samples each"
    figure = lambda: restoration_figure(x[shown], tiles, args.samples)
    return Findings(results, (about, restoration_table(results)), {"picture.png": figure})


main = Experiment("restoration", __doc__, measure, needs=(DENOISER,), limit=16, batch_size=64)

if __name__ == "__main__":
    run_command(main)
