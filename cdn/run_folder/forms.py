"""What is read from the files of a run, and whether it has the form that its reader expects."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from cdn.errors import CheckpointError

LARGEST_INTEGER = 2**64 - 1  # of seeds


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds.

    Raises:
        CheckpointError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def misfit(found: Any, form: Any, name: str = "", *, whole: bool = False) -> str | None:
    """Return in words what of a value read from a file is not of the form that its reader expects; None if nothing is.

    Args:
        found: the value.
        form: a type, or a union of types, where whole numbers count as floats and truth values as neither, and numbers
            are finite; a dict of forms by key; a list with the form of every item; a tensor of the shape and dtype.
        name: of the value.
        whole: whether the keys of dicts are all there, and no others.
    """
    if isinstance(form, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (form.shape, form.dtype):
            return f"{name} is {_said(found)}, expected {_said(form)}"
        return None
    if isinstance(form, dict):
        if not isinstance(found, dict):
            return f"{name} is {_said(found)}, expected names and values"
        if whole and (different := form.keys() ^ found.keys()):
            return f"{name} lacks or should not have {', '.join(map(repr, sorted(different, key=str)[:3]))}"
        parts = [
            (found[key], inner, f"{name}.{key}" if name else str(key)) for key, inner in form.items() if key in found
        ]
    elif isinstance(form, list):
        if not isinstance(found, list):
            return f"{name} is {_said(found)}, expected a list"
        parts = [(item, form[0], f"{name}[{index}]") for index, item in enumerate(found)]
    else:
        return None if _is(found, form) else f"{name} is {_said(found)}, expected {getattr(form, '__name__', form)}"
    return next(filter(None, (misfit(*part, whole=whole) for part in parts)), None)


def _is(found: Any, form: Any) -> bool:
    if isinstance(found, bool):
        return isinstance(found, form) and not isinstance(0, form)
    if isinstance(found, int):
        return abs(found) <= LARGEST_INTEGER and (isinstance(found, form) or isinstance(0.0, form))
    return isinstance(found, form) and (not isinstance(found, float) or math.isfinite(found))


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, (str, int, float)) else type(value).__name__
