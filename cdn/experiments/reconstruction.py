"""Classify by reconstruction: one small generator per class, and the class that reconstructs an image best.

Analysis by synthesis (Schott et al. 2018) on the data of RUN: trains a variational autoencoder per class, and searches
for each image and class the latent that explains the image best. Measures accuracy, clean and under attacks, beside
that of RUN's own classifier, and a lower bound on the L2 change that alters a decision, which is an estimate, for it
takes the search for exact. The generators stay in OUT/generators.safetensors and are used again where they fit.

Examples:
  python -m cdn.experiments.reconstruction runs/digits --side 28
  python -m cdn.experiments.reconstruction runs/cifar10 --limit 200 --attack-images 50
"""

import argparse
import time
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import positive_float, positive_int, run_command, whole_number
from cdn.errors import CDNError
from cdn.evaluation.evaluate import accuracy
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.attacks import distance, sweep
from cdn.methods.attacks.pursuit import Classifier
from cdn.methods.synthesis import (
    ClassGenerators,
    Inference,
    ReconstructionClassifier,
    fit,
    latent_descent,
    load_generators,
    lower_bounds,
    save_generators,
)
from cdn.methods.synthesis.enlarge import Enlargement
from cdn.model.finite import decided
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid

GENERATORS = "generators.safetensors"
# Training images kept to calibrate the classifier; images in the picture, and classes shown there; all at most.
HELD_OUT, SHOWN, CLASSES_SHOWN = 200, 5, 10
# Radii are given and shown in these parts of the range from black to white.
UNITS = dict(l2=1, linf=255)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    run = experiment.run
    if not run.has_classes:
        raise CDNError(f"{run.path}: was trained to denoise only, it has no classes to compare with")
    x, labels = experiment.test_images()
    try:
        size = Enlargement(run.dataset.shape, args.side or max(run.dataset.shape[1:]))
        x = size.enlarge(x)
        classifier, results = prepare(experiment, size)
        with evaluating(experiment.model, args.precision):
            measured, shown = measure(classifier, lambda y: experiment.model(size.shrink(y)), x, labels, experiment)
    except ValueError as error:
        raise CDNError(f"{run.path}: {error}") from None
    results |= measured
    print(
        f"{len(x)} test images of {run.dataset.name} at {size.shape[1]}x{size.shape[2]}, the first "
        f"{results['attacked']} of them attacked; accuracy (%)"
    )
    print(table(results, args))
    print(f"median lower bound: {results['median_bound']:.3g} in L2, 0 for what is misclassified; an estimate")
    if shown is not None:
        experiment.save_figure(picture(classifier, *shown, run.dataset.classes))
    experiment.write(results)


def prepare(experiment: Experiment, size: Enlargement) -> tuple[ReconstructionClassifier, Results]:
    """Return a calibrated classifier, with new generators or those that are there, and what JSON should hold of it.

    Args:
        experiment: a :class:`cdn.experiments.runner.Experiment`.
        size: the :class:`cdn.methods.synthesis.enlarge.Enlargement` of its images.
    """
    args, dataset = experiment.args, experiment.run.dataset
    x, labels = experiment.images(dataset.train, args.train_images)
    x = size.enlarge(x)
    held = min(HELD_OUT, max(len(x) // 5, 1))
    generators = ClassGenerators(len(dataset.classes), size.shape, args.latents, args.width, args.sigma, args.seed)
    settings = dict(data=dataset.name, images=len(x) - held, steps=args.fit_steps, rate=args.fit_rate, seed=args.seed)
    path = experiment.out / GENERATORS
    old, known = load_generators(path, experiment.device) if path.exists() else (None, {})
    if old is not None and old.config == generators.config and settings.items() <= known.items():
        print(f"{path}: used again")
        generators, settings = old, known
    else:
        start = time.perf_counter()
        bound = fit(
            generators.to(experiment.device),
            x[:-held],
            labels[:-held],
            steps=args.fit_steps,
            rate=args.fit_rate,
            seed=args.seed,
            progress=experiment.progress,
        )
        settings |= dict(bound=bound, seconds=round(time.perf_counter() - start, 1))
        save_generators(path, generators, settings)
        print(f"wrote {path}")
    classifier = ReconstructionClassifier(
        generators,
        steps=args.search_steps,
        starts=args.starts,
        draws=args.draws,
        seed=args.seed,
        batch_size=args.batch_size,
    ).to(experiment.device)
    loss = classifier.calibrate(x[-held:], labels[-held:])
    return classifier, dict(
        generators=generators.config | settings, sigma=float(generators.sigma.detach()), calibration_loss=loss
    )


def measure(
    classifier: ReconstructionClassifier, own: Classifier, x: Tensor, labels: Tensor, experiment: Experiment
) -> tuple[Results, tuple[Tensor, Tensor, Tensor] | None]:
    """Measure both classifiers, and attack them.

    Args:
        classifier: the :class:`cdn.methods.synthesis.ReconstructionClassifier`.
        own: the classifier of the run, a function of the same images.
        x, labels: test images [N, C, H, W] and their classes [N].
        experiment: the :class:`cdn.experiments.runner.Experiment`.

    Returns:
        What JSON should hold, and (x, attacked, labels) of images that the L2 attack has found, or None.
    """
    args = experiment.args
    with tqdm(x.split(args.batch_size), unit="batch", leave=False, disable=not experiment.progress) as parts:
        found = Inference(*map(torch.cat, zip(*map(classifier.infer, parts))))
    right = decided(found.bound) == labels
    own_clean = accuracy(own, x, labels, args.batch_size)
    bounds = lower_bounds(found, labels, classifier.generators.sigma.detach())
    x, labels, bounds = (values[: args.attack_images] for values in (x, labels, bounds))
    options = dict(steps=args.attack_steps, seed=args.seed, batch_size=args.batch_size, progress=experiment.progress)
    curves = {
        name: {norm: sweep(model, x, labels, norm, radii, **options) for norm, radii in _radii(args).items()}
        for name, model in (("reconstruction", classifier), ("own", own))
    }
    fooled, images = latent_descent(classifier, x, labels, steps=args.attack_steps, progress=experiment.progress)
    lengths = torch.where(fooled, distance("l2", x, images), torch.inf).double()
    share = lambda lengths: [float((lengths > radius).double().mean()) for radius in _radii(args)["l2"]]
    attacked = {name: {norm: curve.robust_accuracy for norm, curve in norms.items()} for name, norms in curves.items()}
    strongest = curves["reconstruction"]["l2"]
    shown = _one_per_class(labels, (strongest.broken_at > 0) & strongest.broken_at.isfinite())[:SHOWN]
    return dict(
        images=len(right),
        attacked=len(x),
        radii=_radii(args),
        clean=float(right.double().mean()),
        own_clean=own_clean,
        robust=attacked,
        latent_descent=share(lengths),
        latent_descent_median=float(lengths[lengths > 0].median()) if (lengths > 0).any() else None,
        bound_above=share(bounds),
        median_bound=float(bounds.median()),
    ), (x[shown], strongest.images[shown], labels[shown]) if len(shown) else None


def table(results: Results, args: argparse.Namespace) -> str:
    """Return accuracies, clean and at every radius, as text."""
    header = [
        "",
        "clean",
        *(f"L2 {radius:g}" for radius in args.radii_l2),
        *(f"Linf {radius:g}/255" for radius in args.radii_linf),
    ]
    percent = lambda values: [f"{100 * value:.1f}" for value in values]
    blank = [None] * len(args.radii_linf)
    robust = {name: [*norms["l2"], *norms["linf"]] for name, norms in results["robust"].items()}
    return text_table(
        header,
        [
            ["reconstruction, APGD", *percent([results["clean"], *robust["reconstruction"]])],
            ["reconstruction, latent descent", None, *percent(results["latent_descent"]), *blank],
            ["reconstruction, lower bound", None, *percent(results["bound_above"]), *blank],
            ["RUN itself, APGD", *percent([results["own_clean"], *robust["own"]])],
        ],
    )


def picture(
    classifier: ReconstructionClassifier, x: Tensor, attacked: Tensor, labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Draw images and what each class makes of them, each above its attacked self; captions are the bounds."""
    pairs = torch.stack([x, attacked], 1).flatten(0, 1)
    found = classifier.infer(pairs)
    chosen = decided(found.bound)
    lengths = distance("l2", x, attacked).tolist()
    captions = [text for length in lengths for text in ("clean", f"changed by {length:.2f}")]
    columns = [("image", pairs, [f"{text}: {classes[c][:8] if c >= 0 else '?'}" for text, c in zip(captions, chosen)])]
    marks = lambda c: [f"{'▸ ' if c == best else ''}{value:.0f} nats" for value, best in zip(found.bound[:, c], chosen)]
    made = [(classes[c], found.reconstructions[:, c], marks(c)) for c in range(min(len(classes), CLASSES_SHOWN))]
    names = [name for label in labels for name in (classes[label], "attacked")]
    return draw_grid([columns, made], names)


def _one_per_class(labels: Tensor, chosen: Tensor) -> Tensor:
    """Return the indices of the first chosen image of each class."""
    firsts = [(chosen & (labels == label)).nonzero()[:1, 0] for label in labels.unique()]
    return torch.cat(firsts)


def _radii(args: argparse.Namespace) -> dict[str, list[float]]:
    return {norm: [radius / unit for radius in sorted(getattr(args, f"radii_{norm}"))] for norm, unit in UNITS.items()}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("reconstruction", __doc__, limit=200, batch_size=64)
    add = parser.add_argument
    add(
        "--side",
        metavar="N",
        type=positive_int,
        help="enlarge the images to this many pixels, such as 28 for digits; RUN sees them shrunk back",
    )
    group = parser.add_argument_group("generators")
    add = group.add_argument
    add(
        "--train-images",
        metavar="N",
        type=positive_int,
        default=10_000,
        help=f"the last of them, at most {HELD_OUT}, only calibrate (default: %(default)s)",
    )
    add("--latents", metavar="N", type=positive_int, default=8, help="latent dimensions (default: %(default)s)")
    add("--width", metavar="N", type=positive_int, default=128, help="of the widest layer (default: %(default)s)")
    add("--sigma", metavar="S", type=positive_float, help="deviation of the pixels (default: learned)")
    add("--fit-steps", metavar="N", type=positive_int, default=500, help="of training (default: %(default)s)")
    add("--fit-rate", metavar="R", type=positive_float, default=2e-3, help="learning rate (default: %(default)s)")
    group = parser.add_argument_group("search")
    add = group.add_argument
    add("--search-steps", metavar="N", type=whole_number, default=30, help="per start (default: %(default)s)")
    add(
        "--starts",
        metavar="N",
        type=positive_int,
        default=2,
        help="the encoder, and the best draws (default: %(default)s)",
    )
    add(
        "--draws",
        metavar="N",
        type=whole_number,
        default=64,
        help="from the prior, of which the best are followed (default: %(default)s)",
    )
    group = parser.add_argument_group("attacks")
    add = group.add_argument
    add(
        "--attack-images",
        metavar="N",
        type=positive_int,
        default=50,
        help="attack the first N test images (default: %(default)s)",
    )
    add("--attack-steps", metavar="N", type=positive_int, default=20, help="of each attack (default: %(default)s)")
    add(
        "--radii-l2",
        metavar="R",
        type=positive_float,
        nargs="+",
        default=(0.25, 0.5, 1),
        help="where white is 1, over all values of an image (default: 0.25 0.5 1)",
    )
    add(
        "--radii-linf",
        metavar="R",
        type=positive_float,
        nargs="+",
        default=(8, 16, 32),
        help="in grey levels of 255 (default: 8 16 32)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
