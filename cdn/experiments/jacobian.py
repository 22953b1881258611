"""Look at what a denoiser keeps and what it suppresses: trace, symmetry, spectrum and eigenvectors of its Jacobian.

    python -m cdn.experiments.jacobian runs/cifar10
    python -m cdn.experiments.jacobian runs/digits --sigmas 25/255 50/255 100/255 --image 3 --largest 8

Per noise level: the trace (the effective dimension) by Hutchinson's estimate over the first test images, beside the
loss that it predicts; the asymmetry in the precision of the run and in float64; and for one image the largest and
smallest eigenpairs by block Lanczos iteration and, where the image is small enough, the whole spectrum from the dense
Jacobian, which checks the rest. A direct denoiser has no symmetric Jacobian: it gets singular values instead of
eigenpairs. Writes report.json, spectrum.png and, for a model of densities, eigenvectors.png.
"""

import torch

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import DENOISER, Experiment, Findings, Session
from cdn.methods.spectrum.dimension import asymmetry_in_float64, summarize_dimension
from cdn.methods.spectrum.spectrum import DENSE_SIZE, EXACT_IMAGES, check_numbers, measure_spectrum
from cdn.model.capabilities import is_direct_denoiser
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.spectra import dimension_table, eigenvectors_figure, spectrum_figure, spectrum_table
from cdn_kernels import standard_normal

DIRECT = """
A direct denoiser is the gradient of nothing: its Jacobian is not symmetric and has no orthonormal eigenvectors.
Singular values stand for eigenvalues, and eigenvectors.png is not drawn."""


def measure(session: Session) -> Findings:
    """Measure the Jacobian at test images, and its spectrum at one of them."""
    args, model, dataset = session.args, session.model, session.run.dataset
    x, _ = session.test_images()
    if args.image >= len(dataset.test):
        count = len(dataset.test)
        raise CDNError(f"--image: expected one of the {count} test images, 0 to {count - 1}, got {args.image}")
    shown, labels = session.load(dataset.test, torch.tensor([args.image]))
    size, label = shown.numel(), dataset.classes[labels[0]]
    numbers = dict(probes=args.probes, largest=args.largest, smallest=args.smallest, limit=args.krylov)
    check_numbers(size, **numbers)
    dense = not args.no_dense and size <= DENSE_SIZE
    how = dict(seed=args.seed, batch_size=args.batch_size, precision=args.precision)
    results, pictures = {}, []
    with session.bar(total=(args.probes * len(x) + dense * size) * len(args.sigmas), unit="product") as bar:
        for sigma in args.sigmas:
            result = summarize_dimension(model, x, sigma, probes=args.probes, **how, bar=bar)
            result["asymmetry_float64"] = asymmetry_in_float64(
                model, x[:EXACT_IMAGES], sigma, seed=args.seed, probes=args.probes
            )
            y = shown + sigma * standard_normal(shown.shape, EVALUATION.key(args.seed), device=shown.device)
            found, denoised, pairs = measure_spectrum(model, y, sigma, dense=dense, **numbers, **how, bar=bar)
            results[sigma_text(sigma)] = result | found
            if pairs is not None:
                pictures.append((sigma, y, denoised, pairs))
    text = [
        (
            f"{session.name}: {len(x)} test images of {dataset.name}, d = {size} values each, {args.probes} "
            f"probes per image; spectrum at test image {args.image} ({label})"
        ),
        dimension_table(results),
    ]
    text += [spectrum_table(results)] if dense or pictures else []
    figures = {"spectrum.png": lambda: spectrum_figure(args.sigmas, results, size)}
    if is_direct_denoiser(model):
        text.append(DIRECT)
    else:
        figures = {"eigenvectors.png": lambda: eigenvectors_figure(pictures, args.largest), **figures}
    return Findings(dict(images=len(x), size=size, image=args.image, label=label, sigma=results), text, figures)


main = Experiment("jacobian", __doc__, measure, needs=(DENOISER,), limit=128, batch_size=32)

if __name__ == "__main__":
    run_command(main)
