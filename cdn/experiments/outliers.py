"""Out-of-distribution detection: how well a model tells the test images of its data from others.

    python -m cdn.experiments.outliers runs/cifar10 --outliers CIFAR-100=data/cifar100

Four detectors, each greater for what looks more like the training: the log-density log p(y), its typicality, the norm
of the score and the maximum softmax (cdn/methods/detection/). Outliers are noise, constant images,
distorted test images ("mirrored" ones are a control: photographs stay photographs), letters where images have no color,
and the folders given with --outliers. All is measured on images as they are and again with Gaussian noise of --sigma on
inliers and outliers alike, as the network models the densities of noisy images. Half of the images taken are inliers,
the other half is what distorted outliers are made of.

A classifier without a density is measured by its maximum softmax alone. The figures hold for these outliers only.
"""

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import DENSITY_OR_CLASSES, Experiment, Findings, Session
from cdn.methods.detection.detectors import rate_sets, separations
from cdn.methods.detection.outlier_sets import read_outlier_sets, synthetic_outliers
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.separation import INLIERS, details, overview, ratings_figure, roc_figure, sets_figure


def measure(session: Session) -> Findings:
    """Rate inliers and outliers, clean and noisy, and measure how well the ratings tell them apart."""
    args, run, dataset = session.args, session.run, session.run.dataset
    images, _ = session.test_images()
    if len(images) < 4:
        raise CDNError(f"--limit: expected at least 4 test images, two of them inliers, got {len(images)}")
    inliers, others = images[::2], images[1::2]
    synthetic = synthetic_outliers(others, args.seed)
    given = read_outlier_sets(args.outliers, (INLIERS, *synthetic), dataset.shape, len(inliers))
    sets = {name: images.to(session.device) for name, images in given.items()} | synthetic
    training, _ = session.images(dataset.train, len(inliers))
    levels = {"clean": 0.0, f"σ = {sigma_text(args.sigma)}": args.sigma}
    how = dict(density=run.has_density, classes=run.has_classes, batch_size=args.batch_size)
    key, known = EVALUATION.key(args.seed), {INLIERS: inliers} | sets
    with session.bar(total=len(levels) * (len(known) + 1), unit="set") as bar, session.evaluating():
        ratings = {
            name: rate_sets(run.model, known, training, level, key, bar, **how) for name, level in levels.items()
        }
    results = {level: separations(rated, INLIERS) for level, rated in ratings.items()}
    fewest = min(map(len, sets.values()))
    against = f"{len(inliers)} test images of {dataset.name} against {fewest} or more outliers of each kind"
    about = f"{session.name}: {against}"
    return Findings(
        dict(
            inliers=len(inliers),
            training=len(training),
            separation=results,
            outliers={name: len(images) for name, images in sets.items()},
        ),
        (about, overview(results), details(results)),
        {
            "picture.png": lambda: sets_figure(inliers, sets),
            "ratings.png": lambda: ratings_figure(ratings),
            "roc.png": lambda: roc_figure(ratings, results),
        },
    )


main = Experiment("outliers", __doc__, measure, needs=(DENSITY_OR_CLASSES,), limit=1000)

if __name__ == "__main__":
    run_command(main)
