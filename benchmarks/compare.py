"""Show what a change gained or lost, from two recorded runs.

    pytest benchmarks/ --benchmark-only --benchmark-json old.json      (before)
    pytest benchmarks/ --benchmark-only --benchmark-json new.json      (after)
    python -m benchmarks.compare old.json new.json

Every comparison that both runs made is listed: how many times as long as the library a peer took, or how many times as
long as its floor the library took. Ratios are compared, not times, so that a machine that is busier today does not look
like a slower library. A change is one only where the intervals of the two runs do not overlap.
"""

import argparse
from pathlib import Path

from benchmarks.harness.record import read


def comparisons(record):
    """Return {(case, against what): (Ratio, whether more is better)}."""
    found = {}
    for result in record.results.values():
        for peer, ratio in result["ratios"].items():
            found[result["case"], peer] = ratio, True
        if result["floor"]:
            found[result["case"], "the floor"] = result["floor"]["ratio"], False
    return found


def verdict(old, new, more_is_better):
    """Say in a word whether a Ratio changed beyond the spread of both runs, and whether to the better."""
    if old.low <= new.high and new.low <= old.high:
        return ""
    return "gained" if (new.median > old.median) == more_is_better else "LOST"


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="JSON of the run before")
    parser.add_argument("new", type=Path, help="JSON of the run after")
    args = parser.parse_args(argv)
    old, new = read(args.old), read(args.new)
    for key in sorted(old.machine.keys() & new.machine.keys()):
        if key != "commit" and old.machine[key] != new.machine[key]:
            print(f"Careful: {key} was {old.machine[key]!r} and is {new.machine[key]!r}.")
    before, after = comparisons(old), comparisons(new)
    shared = [key for key in before if key in after]
    if not shared:
        raise SystemExit("the two runs have no comparison in common")
    counts = {"gained": 0, "LOST": 0, "": 0}
    case = None
    for key in shared:
        (a, better), (b, _) = before[key], after[key]
        word = verdict(a, b, better)
        counts[word] += 1
        if key[0] != case:
            case = key[0]
            print(f"\n{case}")
        print(f"  {key[1]:<38} {a.digits:<24} {b.digits:<24} x{b.median / a.median:.2f}  {word}".rstrip())
    print(
        f"\n{len(shared)} comparisons: {counts['gained']} gained, {counts['LOST']} lost, {counts['']} within the "
        f"spread; {len(before) - len(shared)} only in {args.old}, {len(after) - len(shared)} only in {args.new}"
    )


if __name__ == "__main__":
    main()
