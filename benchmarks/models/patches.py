"""Make the image folder that a denoiser of photographs is trained on: square patches, all of one size.

    python -m benchmarks.models.patches --small data/imagenet64 --large BACKGROUNDS --side 48 --out data/patches

Small pictures (of an image folder) are resized to a patch each: those of JPEG files with halved colour have artifacts
that would be learned as image, and fewer of them the more they are reduced. Large photographs are reduced by each of
some factors and cut into patches that do not overlap. Images of CIFAR-10, if given, are taken as they are, and make the
side 32; those that exist only as copies of JPEG files are left out. OUT/train/SOURCE and OUT/val/SOURCE hold the
patches as PNG files; the sources stand in place of classes.
"""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cdn.cli.arguments import make_parser, positive_int
from cdn.cli.process import run_command
from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.files import make_folder
from cdn.images.decoder import decode
from cdn.images.image_files import find_images

CIFAR_SIDE = 32
HELD_OUT = 10  # of so many large photographs the last is for validation
SPLITS = ("train", "val")
Patches = Iterator[tuple[str, Image.Image]]


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("benchmarks.models.patches", __doc__)
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="folder of CIFAR-10")
    parser.add_argument("--small", type=Path, metavar="DIR", help="image folder, DIR/train/CLASS/*")
    parser.add_argument("--large", type=Path, nargs="+", metavar="DIR", default=[], help="folders of photographs")
    parser.add_argument("--side", type=positive_int, default=48, help="of a patch, in pixels (default: 48)")
    text = "factors by which large photographs are reduced (default: 3 4 6)"
    parser.add_argument("--reduce", type=positive_int, nargs="+", default=[3, 4, 6], metavar="N", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="a new folder")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise CDNError(f"--out: {args.out} exists: name a new folder")
    if args.cifar10 and args.side != CIFAR_SIDE:
        raise CDNError(f"--side: the images of CIFAR-10 have a side of {CIFAR_SIDE}, got {args.side}")
    sources: dict[str, Patches] = {}
    if args.cifar10:
        sources["cifar10"] = of_cifar10(args.cifar10)
    if args.small:
        sources["small"] = of_small(args.small, args.side)
    if args.large:
        sources["large"] = of_large(args.large, args.side, args.reduce)
    if not sources:
        raise CDNError("give --cifar10, --small or --large: there is nothing to make patches of")
    for source, patches in sources.items():
        counts = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            make_folder(args.out / split / source)
        for split, patch in patches:
            patch.save(args.out / split / source / f"{counts[split]:06}.png", compress_level=1)
            counts[split] += 1
        print(f"{source}: {counts['train']:,} patches to train on, {counts['val']:,} to validate")


def of_cifar10(folder: Path) -> Patches:
    """Yield the images of CIFAR-10 that exist losslessly, each with the split that it is for."""
    data = load_dataset("cifar10", folder)
    for split, images in zip(SPLITS, (data.train, data.test)):
        for index in images.exact.nonzero()[:, 0]:
            yield split, Image.fromarray(images.load(index[None])[0][0].permute(1, 2, 0).contiguous().numpy())


def of_small(folder: Path, side: int) -> Patches:
    """Yield the central squares of the pictures of an image folder, reduced to a side."""
    for split in SPLITS:
        for path in sorted((folder / split).glob("*/*")):
            picture = decode(path).image.convert("RGB")
            if min(picture.size) < side:
                raise CDNError(f"{path}: expected {side} pixels or more on each side, got {picture.size}")
            low = min(picture.size)
            left, top = ((length - low) // 2 for length in picture.size)
            box = (left, top, left + low, top + low)
            yield split, picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def of_large(folders: list[Path], side: int, factors: list[int]) -> Patches:
    """Yield the patches of large photographs, reduced by means over squares of pixels."""
    paths = [path for folder in folders for path in find_images(folder)]
    for number, path in enumerate(paths, 1):
        photograph = decode(path).image.convert("RGB")
        for factor in factors:
            picture = photograph.reduce(factor)
            for top in range(0, picture.height - side + 1, side):
                for left in range(0, picture.width - side + 1, side):
                    yield SPLITS[number % HELD_OUT == 0], picture.crop((left, top, left + side, top + side))


if __name__ == "__main__":
    run_command(main)
