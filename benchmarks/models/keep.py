"""Keep what a training and the commands on it recorded: the small files of their folders, and their pictures.

    python -m benchmarks.models.keep cifar10 runs/cifar10 results/cifar10

They go to docs/records/runs/NAME; the folders are those of the run and of results on it, in this order: what a later
one has replaces what an earlier one had. Pictures go to docs/images/NAME-*.png.
"""

import json
import re
from pathlib import Path

from cdn.cli.arguments import make_parser
from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import REPORT
from cdn.files import json_text, make_folder, write_atomically
from cdn.run_folder.names import CONFIG, EVALUATION, METRICS

RECORDS, IMAGES = Path("docs/records/runs"), Path("docs/images")
KEPT = (CONFIG, METRICS, EVALUATION)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("benchmarks.models.keep", __doc__)
    parser.add_argument("name", metavar="NAME", help="what the record is to be called")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of the run and of results on it")
    args = parser.parse_args(argv)
    target = RECORDS / args.name
    for folder in args.folders:
        if not folder.is_dir():
            raise CDNError(f"{folder}: expected a folder of a run or of results")
        for path in [*(folder / name for name in KEPT), *sorted(folder.glob(f"*/{REPORT}"))]:
            if path.exists():
                kept = target / (path.name if path.parent == folder else f"{path.parent.name}.json")
                make_folder(target)
                write_atomically(kept, _anonymous(path))
                print(f"kept {kept}")
        for path in sorted([*folder.glob("*.png"), *folder.glob("*/*.png")]):
            make_folder(IMAGES)
            kept = IMAGES / f"{args.name}-{'-'.join(path.relative_to(folder).with_suffix('').parts)}.png"
            write_atomically(kept, path.read_bytes())
            print(f"kept {kept}")


def _anonymous(path: Path) -> bytes:
    """Return what a file holds, without the folders of this machine."""
    if path.suffix != ".json":
        return path.read_bytes()
    return (json_text(_relative(json.loads(path.read_text())), indent=1) + "\n").encode()


def _relative(value: object) -> object:
    """Return a value of JSON in which absolute paths are their last part."""
    if isinstance(value, dict):
        return {key: _relative(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item) for item in value]
    return Path(value).name if isinstance(value, str) and re.fullmatch(r"/\S+", value) else value


if __name__ == "__main__":
    run_command(main)
