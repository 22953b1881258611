"""Read what ``pytest benchmarks/ --benchmark-json FILE`` wrote."""

import json
from typing import NamedTuple

from benchmarks.harness.timing import Ratio

LIBRARY = "this library"  # what the names of its cases begin with


class Record(NamedTuple):
    """A run of the benchmarks.

    Attributes:
        date: of the run, ISO 8601.
        machine: hardware and versions, see :func:`.machine.describe`.
        results: by the name of the test, dicts with the fields of :class:`.paired.Result`.
    """

    date: str
    machine: dict
    results: dict

    def of(self, operation):
        """Return the results of an operation, in order."""
        return [result for result in self.results.values() if result["facts"]["operation"] == operation]


def check(result):
    """Check that the fields of a :class:`.paired.Result` say what was measured on what, and that all values agreed.

    Raises:
        AssertionError: they do not; the message says where.
    """
    case = result["case"]
    assert "operation" in result["facts"], f"{case}: no operation"
    assert next(iter(result["seconds"])).startswith(LIBRARY), f"{case}: the library does not come first"
    missing = {"device", "threads", "torch", "triton", "cuda", "commit"} - result["machine"].keys()
    assert not missing, f"{case}: the machine has no {' and no '.join(missing)}"
    assert result["command"].startswith('pytest "benchmarks/'), f"{case}: {result['command']} does not measure it again"
    for peer, (median, low, high) in result["ratios"].items():
        assert 0 < low <= median <= high, f"{case}: {peer}: the interval {low} to {high} does not hold {median}"
    for peer, reason in result["refused"].items():
        assert "no comparison" not in reason, f"{case}: {peer}: {reason}"


def read(path):
    """Return the Record in a file.

    Raises:
        SystemExit: no such file, or one that the benchmarks did not write.
    """
    try:
        run = json.loads(path.read_text())
        benchmarks = {b["fullname"]: b["extra_info"] for b in run["benchmarks"]}
        date, machine = run["datetime"], run["machine_info"]["cdn"]
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemExit(f"{path}: not what pytest benchmarks/ --benchmark-json wrote") from None
    for result in benchmarks.values():
        result["ratios"] = {name: Ratio(*ratio) for name, ratio in result.get("ratios", {}).items()}
        if result.get("floor"):
            result["floor"]["ratio"] = Ratio(*result["floor"]["ratio"])
    return Record(date, machine, {name: r for name, r in benchmarks.items() if r.get("seconds")})
