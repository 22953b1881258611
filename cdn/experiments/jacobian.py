"""Look at what a denoiser keeps and what it suppresses: trace, symmetry, spectrum and eigenvectors of its Jacobian.

    python -m cdn.experiments.jacobian runs/cifar10
    python -m cdn.experiments.jacobian runs/digits --sigmas 25 50 100 --image 3 --largest 8

Per noise level: the trace (the effective dimension) by Hutchinson's estimate over the first test images, beside the
loss that it predicts; the asymmetry in the precision of the run and in float64; and for one image the largest and
smallest eigenpairs by block Lanczos iteration and, where the image is small enough, the whole spectrum from the dense
Jacobian, which checks the rest. A direct denoiser has no symmetric Jacobian: it gets singular values instead of
eigenpairs. Writes report.json, spectrum.png and, for a model of densities, eigenvectors.png.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from tqdm import tqdm

from cdn.cli.arguments import positive_int, run_command, whole_number
from cdn.density import denoise
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION
from cdn.experiments.runner import Experiment, Results, add_grey_sigmas, make_parser, mean_and_error, text_table
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, eigenpairs, matrix, probe
from cdn.methods.spectrum.dimension import effective_dimension
from cdn.methods.spectrum.lanczos import Eigenpairs
from cdn.model.capabilities import is_direct_denoiser, kind
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, tidy
from cdn_kernels import Noise, standard_normal
from cdn_kernels.noise import seeded

# Probes have keys of their own, far from those of the images' noise.
PROBES = EVALUATION + (1 << 32)
# Images of the float64 check, and the size up to which a dense Jacobian is affordable.
EXACT_IMAGES, DENSE_SIZE = 4, 4096


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    model = experiment.model
    if not experiment.run.denoises:
        raise CDNError(f"{args.run}: expected a model that denoises, got {kind(model, experiment.run.objective)}")
    x, _ = experiment.test_images()
    shown, label = shown_image(experiment)
    check_numbers(args, shown.numel())
    dense = not args.no_dense and shown.numel() <= DENSE_SIZE
    total = (args.probes * len(x) + dense * shown.numel()) * len(args.sigmas)
    results, pictures = {}, []
    with tqdm(total=total, unit="product", leave=False, disable=not experiment.progress) as bar:
        for grey in args.sigmas:
            sigma = grey / 255
            result = dimension(model, x, sigma, args, bar)
            result["asymmetry_float64"] = asymmetry_in_float64(model, x[:EXACT_IMAGES], sigma, args)
            y = shown + sigma * standard_normal(shown.shape, Noise(args.seed, EVALUATION), device=shown.device)
            found, denoised, pairs = spectrum(model, y, sigma, args, dense, bar)
            results[f"{grey:g}"] = result | found
            if pairs is not None:
                pictures.append((grey, y, denoised, pairs))
    print(
        f"{args.run}: {len(x)} test images of {experiment.run.dataset.name}, d = {shown.numel()} values each, "
        f"{args.probes} probes per image; spectrum at test image {args.image} ({label})"
    )
    has_spectrum = dense or not is_direct_denoiser(model)
    tables = [dimension_table, spectrum_table] if has_spectrum else [dimension_table]
    print(*(table(results) for table in tables), sep="\n\n")
    if is_direct_denoiser(model):
        print(
            "\nA direct denoiser is the gradient of nothing: its Jacobian is not symmetric and has no orthonormal "
            "eigenvectors.\nSingular values stand for eigenvalues, and eigenvectors.png is not drawn."
        )
    else:
        experiment.save_figure(eigenvectors_picture(pictures, args.largest), "eigenvectors.png")
    experiment.save_figure(spectrum_picture(results, shown.numel()), "spectrum.png")
    experiment.write(dict(images=len(x), size=shown.numel(), image=args.image, label=label, sigma=results))


def shown_image(experiment: Experiment) -> tuple[Tensor, str]:
    """Return the image of ``--image``, [1, C, H, W] on the device, and the name of its class."""
    split, index = experiment.run.dataset.test, experiment.args.image
    if index >= len(split):
        raise CDNError(f"--image: expected one of the {len(split)} test images, 0 to {len(split) - 1}, got {index}")
    images, labels = split.load(torch.tensor([index]))
    return images.to(experiment.device).float().div(255), experiment.run.dataset.classes[labels[0]]


def check_numbers(args: argparse.Namespace, size: int) -> None:
    """Raise CDNError unless the numbers of probes and eigenpairs suit images of d = size values."""
    if args.probes < 2:
        raise CDNError(f"--probes: a standard error takes at least 2, got {args.probes}")
    wanted = args.largest + args.smallest
    if not wanted <= min(size, args.krylov):
        raise CDNError(
            f"--largest and --smallest: expected at most {min(size, args.krylov)} eigenpairs together, "
            f"the smaller of d = {size} and --krylov {args.krylov}, got {wanted}"
        )


def dimension(model: nn.Module, x: Tensor, sigma: float, args: argparse.Namespace, bar: tqdm | None = None) -> Results:
    """Return means over images of what :func:`cdn.methods.spectrum.dimension.effective_dimension` found.

    A dict of [mean, standard error over images]: ``trace``, ``loss``, ``loss_minus_stein`` and ``loss_minus_trace`` (of
    the trace per dimension); ``probe_error``, the mean standard error of one image's trace; and the mean ``asymmetry``.
    """
    found = effective_dimension(
        model,
        x,
        sigma,
        Noise(args.seed, EVALUATION),
        args.probes,
        Noise(args.seed, PROBES),
        batch_size=args.batch_size,
        precision=args.precision,
        bar=bar,
    )
    return dict(
        trace=mean_and_error(found.trace),
        loss=mean_and_error(found.loss),
        loss_minus_stein=mean_and_error(found.loss - found.stein),
        loss_minus_trace=mean_and_error(found.loss - found.trace / x[0].numel()),
        probe_error=float(found.trace_error.mean()),
        asymmetry=float(found.asymmetry.mean()),
    )


def asymmetry_in_float64(model: nn.Module, x: Tensor, sigma: float, args: argparse.Namespace) -> float:
    """Return the mean asymmetry at a few images x [N, C, H, W] in double precision."""
    twin, x = copy.deepcopy(model).double(), x.double()
    noise = standard_normal(x.shape, Noise(args.seed, EVALUATION), dtype=x.dtype, device=x.device)
    with evaluating(twin, "float32"):
        jacobian = Jacobian(twin, x + sigma * noise, sigma)
        return float(probe(jacobian, args.probes, Noise(args.seed, PROBES)).asymmetry.mean())


def spectrum(
    model: nn.Module, y: Tensor, sigma: float, args: argparse.Namespace, dense: bool, bar: tqdm | None = None
) -> tuple[Results, Tensor, Eigenpairs | None]:
    """Find the ends of the spectrum at one image y [1, C, H, W] and, if dense, all of it.

    Returns:
        (results, D(y), :class:`cdn.methods.spectrum.lanczos.Eigenpairs` or None for a direct denoiser). The results are
        a dict of ``largest`` and ``smallest`` eigenvalues, their largest ``residual``, the ``products`` it took, and
        ``cosine`` of the first eigenvector and y - D(y); ``values``, all eigenvalues (of a direct denoiser: singular
        values), descending, the ``exact_trace`` with Hutchinson's estimate at the same image, [mean, standard error],
        and ``lanczos_error``, the largest difference of the eigenvalues found both ways. None where there is nothing.
    """
    found = dict.fromkeys(
        (
            "largest",
            "smallest",
            "residual",
            "products",
            "cosine",
            "values",
            "exact_trace",
            "hutchinson",
            "lanczos_error",
        )
    )
    pairs = None
    with evaluating(model, args.precision), torch.no_grad():
        denoised = denoise(model, y, sigma)
        if not is_direct_denoiser(model):
            pairs = eigenpairs(
                model, y[0], sigma, args.largest, args.smallest, generator=seeded(args.seed), limit=args.krylov
            )
            values = pairs.values.tolist()
            found.update(
                largest=values[: args.largest],
                smallest=values[args.largest :],
                products=pairs.products,
                residual=float(pairs.residuals.max()),
                cosine=_cosine(pairs.vectors[0], y - denoised),
            )
        if dense:
            jacobian = matrix(model, y[0], sigma, batch_size=args.batch_size, bar=bar)
            probing = probe(Jacobian(model, y, sigma), max(args.probes, 32), Noise(args.seed, PROBES))
            values = (
                torch.linalg.eigvalsh((jacobian + jacobian.T) / 2).flip(0) if pairs else torch.linalg.svdvals(jacobian)
            )
            found.update(
                values=values.tolist(),
                exact_trace=float(jacobian.trace()),
                hutchinson=[float(probing.trace), float(probing.trace_error)],
            )
            if pairs:
                ends = torch.cat([values[: args.largest], values[len(values) - args.smallest :]])
                found["lanczos_error"] = float((ends - pairs.values).abs().max())
    return found, denoised, pairs


def dimension_table(results: Results) -> str:
    """Return trace, loss and asymmetry per noise level, as Markdown."""
    header = [
        "sigma * 255",
        "tr J",
        "error of one image",
        "tr J / d",
        "loss",
        "loss - Stein",
        "loss - tr J / d",
        "asymmetry",
        "in float64",
    ]
    rows = []
    for grey, result in results.items():
        trace, error = result["trace"]
        loss, _ = result["loss"]
        per_value = loss - result["loss_minus_trace"][0]
        rows.append(
            [
                grey,
                f"{trace:.1f} ± {error:.1f}",
                f"{result['probe_error']:.1f}",
                f"{per_value:.4f}",
                f"{loss:.4f}",
                *("{:+.4f} ± {:.4f}".format(*result[key]) for key in ("loss_minus_stein", "loss_minus_trace")),
                f"{result['asymmetry']:.1e}",
                f"{result['asymmetry_float64']:.1e}",
            ]
        )
    return text_table(header, rows)


def spectrum_table(results: Results) -> str:
    """Return the ends of the spectrum and their checks per noise level, as Markdown."""
    header = [
        "sigma * 255",
        "largest",
        "smallest",
        "residual",
        "products",
        "cosine of the first to y - D(y)",
        "Lanczos - dense",
        "exact trace",
        "Hutchinson",
    ]
    few = lambda values: None if values is None else " ".join(f"{value:.3f}" for value in values)
    small = lambda value: None if value is None else f"{value:.1e}"
    rows = [
        [
            grey,
            few(result["largest"]),
            few(result["smallest"]),
            small(result["residual"]),
            result["products"],
            result["cosine"],
            small(result["lanczos_error"]),
            result["exact_trace"],
            result["hutchinson"] and "{:.1f} ± {:.1f}".format(*result["hutchinson"]),
        ]
        for grey, result in results.items()
    ]
    return text_table(header, rows)


def eigenvectors_picture(pictures: Sequence[tuple[float, Tensor, Tensor, Eigenpairs]], largest: int) -> Figure:
    """Draw noisy image, denoised image and eigenvectors, one noise level per row.

    Eigenvectors are signed: 0 is grey, and each is scaled to fill the range. Captions are eigenvalues.
    """
    greys, noisy, denoised, pairs = zip(*pictures)
    vectors = torch.stack([found.vectors for found in pairs], 1)
    vectors = 0.5 + 0.5 * vectors / vectors.abs().amax((2, 3, 4), keepdim=True)
    captions = [
        [f"λ = {value:.3f}" for value in column]
        for column in torch.stack([found.values for found in pairs], 1).tolist()
    ]
    columns = [(f"{k + 1}{'' if k else ' (largest)'}", vectors[k], captions[k]) for k in range(largest)]
    last = [
        (f"d − {len(vectors) - 1 - k}" if k < len(vectors) - 1 else "d (smallest)", vectors[k], captions[k])
        for k in range(largest, len(vectors))
    ]
    groups: list[Sequence[tuple[str, Tensor, Sequence[str]]]] = [
        [("noisy", torch.cat(noisy), ()), ("denoised", torch.cat(denoised), ())],
        columns,
        last,
    ]
    return draw_grid([group for group in groups if group], [f"σ = {grey:g}/255" for grey in greys])


def spectrum_picture(results: Results, size: int) -> Figure:
    """Plot the spectrum of one image per noise level, if any of it is known, and the effective dimension."""
    known = any(result["values"] or result["largest"] for result in results.values())
    figure = Figure(figsize=(9.6 if known else 4.8, 3.8), layout="constrained")
    *left, right = figure.subplots(1, 1 + known, squeeze=False)[0]
    for axes in left:
        _draw_spectrum(axes, results, size)
    _draw_dimension(right, results, size)
    return figure


def _draw_spectrum(axes: Axes, results: Results, size: int) -> None:
    for number, (grey, result) in enumerate(results.items()):
        style: dict[str, Any] = dict(color=SEQUENCE[number % len(SEQUENCE)], label=f"σ = {grey}/255")
        if result["values"] is not None:
            axes.plot(range(1, size + 1), result["values"], linewidth=1.6, **style)
            style.pop("label")
        if result["largest"] is not None:
            ranks = [*range(1, len(result["largest"]) + 1), *range(size - len(result["smallest"]) + 1, size + 1)]
            axes.plot(ranks, result["largest"] + result["smallest"], "o", markersize=3, **style)
    eigen = any(result["largest"] for result in results.values())
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes,
        title="Spectrum of the Jacobian at one image" + (" (dots: Lanczos)" if eigen else ""),
        xlabel="rank",
        ylabel="eigenvalue" if eigen else "singular value",
    )


def _draw_dimension(axes: Axes, results: Results, size: int) -> None:
    greys = [float(grey) for grey in results]
    trace, error = zip(*(result["trace"] for result in results.values()))
    loss = [size * result["loss"][0] for result in results.values()]
    axes.errorbar(
        greys,
        trace,
        [2 * e for e in error],
        fmt="o-",
        color=BLUE,
        markersize=4,
        capsize=3,
        label="trace (± 2 standard errors)",
    )
    axes.plot(greys, loss, "s--", color=ORANGE, markersize=4, label="|D(y) − x|² / σ², equal if exact")
    axes.set(xscale="log", ylim=(0, None))
    axes.set_xticks(greys, [f"{grey:g}" for grey in greys])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes, title=f"Effective dimension, of {size}", xlabel="noise level σ (grey levels of 255)", ylabel="dimensions"
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two directions, which have no sign."""
    a, b = a.flatten(), b.flatten().to(a)
    return abs(float(a @ b)) / float(a.norm() * b.norm())


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("jacobian", __doc__, limit=128, batch_size=32)
    add_grey_sigmas(parser)
    parser.add_argument(
        "--probes",
        metavar="K",
        type=positive_int,
        default=8,
        help="random probes per image, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        metavar="I",
        type=whole_number,
        default=0,
        help="test image whose spectrum is shown (default: %(default)s)",
    )
    parser.add_argument(
        "--largest",
        metavar="N",
        type=positive_int,
        default=6,
        help="eigenpairs at the upper end (default: %(default)s)",
    )
    parser.add_argument(
        "--smallest",
        metavar="N",
        type=whole_number,
        default=3,
        help="eigenpairs at the lower end (default: %(default)s)",
    )
    parser.add_argument(
        "--krylov",
        metavar="N",
        type=positive_int,
        default=512,
        help="products at which the Lanczos iteration stops (default: %(default)s)",
    )
    parser.add_argument(
        "--no-dense",
        action="store_true",
        help=f"skip the dense Jacobian, d products (always skipped above d = {DENSE_SIZE})",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
