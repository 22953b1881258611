"""Ask how well a generator reconstructs images that it was not trained on, and what can tell these from others.

A variational autoencoder with a large latent is trained on images of the first classes of RUN's data. Then it
reconstructs test images of these classes and of all others, which it never saw, noise, distorted images and the folders
given with --outliers, by the latents that a search finds: freely ("free"), with the density N(0, I) on the latent
("prior"), and with a Gaussian fitted to the latents of training images ("fitted"). The network of RUN, which was
trained on all classes, is the arbiter: it rates by its log p how typical images and reconstructions are of the training
images used here, under noise of --sigma.

Prints tables of PSNR and of AUROC, the chance that a random image from inside is rated above one from outside: 0.5
says nothing. Writes report.json, picture.png and reconstructions.png into RUN/out_of_domain.

Example:
  python -m cdn.experiments.out_of_domain runs/cifar10 --outliers CIFAR-100=data/cifar100 --latents 256 --limit 200
"""

import torch

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import DENSITY, Experiment, Findings, Session
from cdn.methods.detection.outlier_sets import read_outlier_sets
from cdn.methods.synthesis import ClassGenerators, fit, outside
from cdn.noise_keys import EVALUATION
from cdn.pictures.out_of_class import detection_figure, detection_table, error_table, search_figure


def measure(session: Session) -> Findings:
    """Train a generator on some classes, and reconstruct and rate images of these and of others."""
    args, run, device = session.args, session.run, session.device
    classes, name = len(run.dataset.classes), run.dataset.name
    count = args.inside or max(classes // 2, 1)
    if count >= classes:
        raise CDNError(
            f"--inside: expected fewer than the {classes} classes of {name}, so that there are others, got {count}"
        )
    training, sets = _sets(session, count)
    how = dict(latents=args.latents, width=args.width, sigma=args.pixel_sigma, seed=args.seed)
    generators = ClassGenerators(1, run.dataset.shape, **how).to(device)
    one_class = torch.zeros(len(training), dtype=torch.int64, device=device)
    steps = dict(steps=args.train_steps, batch_size=args.train_batch)
    fit(generators, training, one_class, seed=args.seed, progress=session.progress, **steps)
    latents = outside.StandardLatents(generators, training, one_class)
    searches = outside.searches(generators, latents, args.free, args.strength)
    search = dict(steps=args.steps, starts=args.starts, rate=args.rate, seed=args.seed, batch_size=args.batch_size)
    made = {
        key: {name: outside.reconstruct(*how, images, **search) for name, images in session.bar(sets.items())}
        for key, how in searches.items()
    }
    with session.evaluating():
        ratings = outside.rate_searches(run.model, sets, made, args.sigma, EVALUATION.key(args.seed), args.batch_size)
    results, sigma = outside.summarize_searches(sets, made, ratings), float(generators.sigma.detach())
    about = (
        f"a generator of {args.latents} latents, trained on {len(training)} images of {count} classes of {name}; "
        f"{len(sets[outside.INSIDE])} images inside, standard deviation of pixels {sigma:.3f}"
    )
    figures = {
        "picture.png": lambda: detection_figure(results),
        "reconstructions.png": lambda: search_figure(sets, made),
    }
    results = dict(training=len(training), sigma=sigma, **results)
    return Findings(results, (about, error_table(results), detection_table(results)), figures)


def _sets(session: Session, count: int) -> tuple[torch.Tensor, outside.Sets]:
    """Return training images of the first classes, and sets of images by name, some of these first, on the device."""
    args, dataset = session.args, session.run.dataset
    training, labels = session.images(dataset.train, args.train_images * len(dataset.classes) // count)
    training = training[labels < count]
    if len(training) < 2:
        raise CDNError(f"--train-images: expected at least two of the first {count} classes, got {len(training)}")
    sets = outside.known_sets(training, *session.images(dataset.test, None), count, args.limit, args.seed)
    given = read_outlier_sets(args.outliers, sets, dataset.shape, args.limit)
    return training, sets | {name: images.to(session.device) for name, images in given.items()}


main = Experiment("out_of_domain", __doc__, measure, needs=(DENSITY,), limit=200, batch_size=128)

if __name__ == "__main__":
    run_command(main)
