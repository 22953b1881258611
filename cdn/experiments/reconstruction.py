"""Classify by reconstruction: one small generator per class, and the class that reconstructs an image best.

Analysis by synthesis (Schott et al. 2018) on the data of RUN: trains a variational autoencoder per class, and searches
for each image and class the latent that explains the image best. Measures accuracy, clean and under attacks, beside
that of RUN's own classifier, and a lower bound on the L2 change that alters a decision, which is an estimate, for it
takes the search for exact. The generators stay in OUT/generators.safetensors and are used again where they fit.

Examples:
  python -m cdn.experiments.reconstruction runs/digits --side 28
  python -m cdn.experiments.reconstruction runs/cifar10 --limit 200 --attack-images 50
"""

import functools

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import CLASSES, Experiment, Findings, Session
from cdn.methods.synthesis import ClassGenerators
from cdn.methods.synthesis.beside_another import compare, prepare
from cdn.methods.synthesis.enlarge import Enlargement
from cdn.pictures.explanations import explanation_figure, explanation_table


def measure(session: Session) -> Findings:
    """Make a classifier by reconstruction, and measure and attack it beside the run's own."""
    args, run, dataset = session.args, session.run, session.run.dataset
    x, labels = session.test_images()
    # White is 1 in L2; in L-infinity radii are given in grey levels.
    radii = {"l2": sorted(args.radii_l2), "linf": [radius / 255 for radius in sorted(args.radii_linf)]}
    search = dict(steps=args.search_steps, starts=args.starts, draws=args.draws, batch_size=args.batch_size)
    how = dict(seed=args.seed, progress=session.progress)
    try:
        size = Enlargement(dataset.shape, args.side or max(dataset.shape[1:]))
        generators = ClassGenerators(len(dataset.classes), size.shape, args.latents, args.width, args.sigma, args.seed)
        generators, path = generators.to(session.device), session.out / "generators.safetensors"
        training, known = session.images(dataset.train, args.train_images)
        fitting = dict(steps=args.fit_steps, rate=args.fit_rate, search=search)
        classifier, results = prepare(generators, path, dataset.name, size.enlarge(training), known, **fitting, **how)
        own = lambda y: session.model(size.shrink(y))
        attack = dict(attacked=args.attack_images, steps=args.attack_steps, batch_size=args.batch_size)
        with session.evaluating():
            measured, shown = compare(classifier, own, size.enlarge(x), labels, radii, **attack, **how)
    except ValueError as error:
        raise CDNError(f"{run.path}: {error}") from None
    results |= measured
    text = (
        (
            f"{len(x)} test images of {dataset.name} at {size.shape[1]}x{size.shape[2]}, the first "
            f"{results['attacked']} of them attacked; accuracy (%)"
        ),
        explanation_table(results),
        f"median lower bound: {results['median_bound']:.3g} in L2, 0 for what is misclassified; an estimate",
    )
    figures = {}
    if shown is not None:
        figures["picture.png"] = functools.partial(explanation_figure, classifier, *shown, dataset.classes)
    return Findings(results, text, figures)


main = Experiment("reconstruction", __doc__, measure, needs=(CLASSES,), limit=200, batch_size=64)

if __name__ == "__main__":
    run_command(main)
