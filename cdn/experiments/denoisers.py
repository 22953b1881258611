"""Denoise without a class, with the true one and with a wrong one, and magnify what the class changes.

    python -m cdn.experiments.denoisers runs/cifar10
    python -m cdn.experiments.denoisers runs/digits --sigmas 25/255 50/255 100/255 --shown 100/255 --rows 8

The wrong class is the most probable one that is not true. Prints, per noise level, the PSNR without a class and the
paired differences that the true and the wrong class make, and how exactly the two identities of class-conditional
denoising hold in float32 and in float64. Writes report.json, denoisers.png (images, and differences of denoisers beside
the adversarial gradients that they equal) and gains.png (the differences of PSNR).
"""

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import CLASSES, DENSITY, Experiment, Findings, Session
from cdn.methods.class_conditional import class_gains, identities, summarize_gains
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.class_gains import denoisers_figure, gains_figure, gains_table, identities_table
from cdn_kernels import standard_normal

# The identities cost a denoiser per class, in float64 too.
IDENTITY_IMAGES = 8


def measure(session: Session) -> Findings:
    """Measure what classes change in denoised images, and how exactly the identities hold."""
    args, model, run = session.args, session.model, session.run
    classes = run.dataset.classes
    if len(classes) < 2:
        raise CDNError(f"{args.run}: expected at least two classes, of which one can be wrong, got {len(classes)}")
    x, labels = session.test_images(exact=True)
    noise = standard_normal(x.shape, EVALUATION.key(args.seed), device=x.device)
    few = slice(IDENTITY_IMAGES)
    levels = {}
    with session.bar(total=len(args.sigmas) * len(x), unit="image") as bar:
        for sigma in args.sigmas:
            gains = class_gains(
                model, x, labels, noise, sigma, batch_size=args.batch_size, precision=args.precision, bar=bar
            )
            found = identities(model, x[few], labels[few], noise[few], sigma)
            levels[sigma_text(sigma)] = summarize_gains(gains) | dict(identities=found)
    shown, true, unit = (values[: args.rows] for values in (x, labels, noise))
    look = (args.shown, classes, args.magnification, args.precision)
    figure, magnification = denoisers_figure(model, shown, true, unit, *look)
    text = (
        (
            f"{session.name}: {len(x)} test images of {run.dataset.name}; differences of denoisers at sigma "
            f"{sigma_text(args.shown)} are shown magnified {magnification:g} times"
        ),
        gains_table(levels),
        identities_table(levels),
    )
    figures = {"denoisers.png": lambda: figure, "gains.png": lambda: gains_figure(args.sigmas, levels)}
    return Findings(dict(images=len(x), magnification=magnification, sigma=levels), text, figures)


main = Experiment("denoisers", __doc__, measure, needs=(DENSITY, CLASSES), limit=1000, batch_size=64)

if __name__ == "__main__":
    run_command(main)
