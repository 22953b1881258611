"""Ask by which similarity reconstructions, and neighbours, classify best.

One small variational autoencoder per class reconstructs every test image (analysis by synthesis), and the class wins
whose reconstruction is most similar: by the squared distance of pixels, by SSIM, by the features of a classifier, or by
information-estimation, the distance of denoising errors over noise levels (Ohayon et al. 2025). "judged": all see the
same reconstructions, found by pixels. "searched": each is also what the reconstructions are searched by, with the
density of the latent (for pixels, the classifier of Schott et al. 2018). As a control without generators, "neighbour":
the class of the most similar of a few training images. All are measured on clean images, on noisy ones, and on images
shifted by a pixel. Prints a table, and writes report.json, picture.png and reconstructions.png into RUN/similarities.

Example:
  python -m cdn.experiments.similarities runs/cifar10 --limit 200 --search pixels SSIM --classifier runs/resnet
"""

from dataclasses import replace

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import CLASSES, DENSITY, Experiment, Findings, Session, require
from cdn.methods.distances.by_similarity import accuracies, all_similarities
from cdn.methods.distances.dissimilarity import shifted
from cdn.methods.synthesis import ClassGenerators, fit
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION, RECONSTRUCTION
from cdn.pictures.similarity_shares import classes_figure, shares_figure, shares_table
from cdn_kernels import sample_noise


def measure(session: Session) -> Findings:
    """Train generators, and classify by every similarity in every way."""
    args, run = session.args, session.run
    classifier = session.open(args.classifier) if args.classifier else run
    require(classifier, CLASSES)
    low = run.levels.low if args.low is None else args.low
    if low >= run.levels.high:
        raise CDNError(f"--low: expected less than {run.levels.high:g}, the highest of the training, got {low:g}")
    levels = replace(run.levels, law="log-uniform", low=low)
    training, labels = session.images(run.dataset.train, args.train_images)
    generators = ClassGenerators(len(run.dataset.classes), run.dataset.shape, width=args.width, seed=args.seed)
    generators.to(session.device)
    x, truth = session.test_images()
    noisy, _ = sample_noise(x, args.sigma, EVALUATION.key(args.seed))
    kinds = {"clean": x, f"σ = {sigma_text(args.sigma)}": noisy.clamp(0, 1), "shifted": shifted(x)}
    information = dict(levels=levels, nodes=args.nodes, noise=RECONSTRUCTION.key(args.seed))
    similarities = all_similarities(classifier.model, run.model, **information)
    search = dict(steps=args.steps, starts=1, seed=args.seed)
    how = dict(searched=args.search, examples=args.examples, search=search, batch_size=args.batch_size)
    try:
        fit(generators, training, labels, steps=args.train_steps, seed=args.seed, progress=session.progress)
        with session.evaluating(classifier.model), session.bar(similarities.items()) as bar:
            shares, found = accuracies(bar, generators, kinds, truth, training, labels, **how)
    except ValueError as error:
        raise CDNError(f"{run.path}: {error}") from None
    sigma = float(generators.sigma.detach())
    about = (
        f"{len(x)} test images of {run.dataset.name}, generators of {len(training)} training images, "
        f"standard deviation of pixels {sigma:.3f}; neighbours among {args.examples} images of each class"
    )
    figures = {
        "picture.png": lambda: shares_figure(shares, len(x)),
        "reconstructions.png": lambda: classes_figure(kinds, found, truth, run.dataset.classes),
    }
    results = dict(images=len(x), training=len(training), sigma=sigma, accuracy=shares)
    return Findings(results, (about, shares_table(shares)), figures)


main = Experiment("similarities", __doc__, measure, needs=(DENSITY,), batch_size=8)

if __name__ == "__main__":
    run_command(main)
