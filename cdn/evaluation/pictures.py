"""Show what a model makes of noisy test images."""
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cdn_kernels import reference as ops
from cdn_kernels.noise import Noise

from ..density import denoise
from ..errors import CDNError
from ..model import DirectDenoiser, ResNet
from .evaluate import EVALUATION, evaluating
from .metrics import psnr
from .style import GREY, save

# The layout, in units of one tile.
GAP, GROUP_GAP, LABEL_HEIGHT, TITLE_HEIGHT, NAME_WIDTH = 0.08, 0.3, 0.22, 0.62, 0.85
INCHES = 0.95


def denoising_picture(model, split, path, *, sigmas=(15, 25, 50), count=8, classes=(), seed=0,
                      precision="float32"):
    """Draw rows of test images: clean, and per noise level noisy, denoised and denoised given the class.

    Each tile carries its PSNR, each column the mean PSNR of its tiles, in dB and of unclipped images.

    Args:
        model: a :class:`cdn.model.GradResNet`, or a :class:`cdn.model.DirectDenoiser`, which knows no
            classes; its training mode is restored afterwards.
        split: an :class:`cdn.data.ImageSplit`; ``count`` of its exact images, evenly spread, are shown.
        path: the picture, .png, .pdf or .svg.
        sigmas: noise levels in grey levels of 255.
        count: number of rows.
        classes: names of the classes, to name the rows.
        seed: of the noise.
        precision: "float32" or "bf16".

    Raises:
        CDNError: the model cannot denoise, or no image of the split is exact.
    """
    if isinstance(model, ResNet):
        raise CDNError("denoising_picture: a ResNet only classifies, expected a model that denoises")
    exact = split.exact.nonzero()[:, 0]
    if len(exact) == 0:
        raise CDNError("denoising_picture: expected exact images, but all of the split are marked as inexact")
    rows = exact[torch.linspace(0, len(exact) - 1, min(count, len(exact))).round().long()]
    images, labels = split.load(rows)
    with evaluating(model, precision) as device, torch.no_grad():
        x = images.to(device).float().div(255)
        groups = [[("clean", x, None)]]
        for sigma in sigmas:
            groups.append(_columns(model, x, labels.to(device), sigma, Noise(seed, EVALUATION)))
    names = [classes[label] if classes else f"class {label}" for label in labels.tolist()]
    save(_draw(groups, names), path)


def _columns(model, x, labels, sigma, key):
    y, _ = ops.sample_noise(x, sigma / 255, key)
    columns = [(f"σ = {sigma:g}/255", y), ("denoised", denoise(model, y, sigma / 255))]
    if not isinstance(model, DirectDenoiser):
        columns.append(("given class", denoise(model, y, sigma / 255, labels)))
    return [(title, images, psnr(images, x)) for title, images in columns]


def _draw(groups, names):
    """Place all tiles in one axes, whose unit is a tile and whose y axis points down."""
    left = 0.0
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    text = lambda x, y, string, **style: axes.text(x, y, string, fontsize=7.5, **style)
    for row, name in enumerate(names):
        text(-0.12, row * (1 + LABEL_HEIGHT) + 0.5, _shorten(name), ha="right", va="center")
    for group in groups:
        for title, images, values in group:
            mean = "" if values is None else f"\n{float(values.mean()):.2f} dB"
            text(left + 0.5, -0.08, title + mean, ha="center", va="bottom", weight="bold")
            for row, tile in enumerate(images.clamp(0, 1).cpu()):
                top = row * (1 + LABEL_HEIGHT)
                _place(axes, tile, left, top)
                if values is not None:
                    axes.text(left + 0.5, top + 1.02, f"{float(values[row]):.1f}", fontsize=6,
                              color="#555555", ha="center", va="top")
            left += 1 + GAP
        left += GROUP_GAP
    width = left - GROUP_GAP + NAME_WIDTH
    height = len(names) * (1 + LABEL_HEIGHT) + TITLE_HEIGHT
    axes.set(xlim=(-NAME_WIDTH, width - NAME_WIDTH), ylim=(height - TITLE_HEIGHT, -TITLE_HEIGHT))
    figure.set_size_inches(INCHES * width, INCHES * height)
    return figure


def _place(axes, tile, left, top):
    """Draw an image of any aspect, with a thin frame, centred in the unit square at (left, top)."""
    height, width = (size / max(tile.shape[1:]) for size in tile.shape[1:])
    x, y = left + (1 - width) / 2, top + (1 - height) / 2
    axes.imshow(tile.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest",
                extent=(x, x + width, y + height, y))
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=GREY, linewidth=0.5))


def _shorten(name, length=11):
    return name if len(name) <= length else name[:length - 1] + "…"
