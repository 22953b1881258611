"""Plots of time and memory against the size of the problem, with the floor beside them."""

import statistics

from matplotlib.figure import Figure

from cdn.pictures.style import BLUE, GREY, ORANGE, save, tidy

_LABELS = {
    "batch": "images in a batch",
    "width": "width of the network",
    "depth": "layers",
    "side": "side of the images",
}


def scaling_plots(results_of, folder):
    """Draw one picture for every axis with more than one value; return {what it shows: file name}.

    Args:
        results_of: a function from the name of an operation to its results.
        folder: where to write.
    """
    axes = {}
    for result in results_of("scaling"):
        axes.setdefault(result["facts"]["axis"], []).append(result)
    pictures = {}
    for axis, results in axes.items():
        if len(results) > 1:
            file = f"scaling-{axis}.png"
            save(_plot(axis, sorted(results, key=lambda result: result["facts"]["value"])), folder / file)
            pictures[f"Time and peak memory of the joint step against the {_LABELS[axis]}"] = file
    return pictures


def _plot(axis, results):
    values = [result["facts"]["value"] for result in results]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, color in zip(results[0]["seconds"], (BLUE, ORANGE)):
        shown = [(value, result) for value, result in zip(values, results) if name in result["seconds"]]
        time.plot(
            [v for v, _ in shown],
            [statistics.median(r["seconds"][name]) for _, r in shown],
            "o-",
            color=color,
            label=name,
        )
        # Nothing at all, on a logarithmic axis, is less than the smallest unit that is measured.
        memory.plot(
            [v for v, _ in shown],
            [max(1, (r["peak_bytes"][name] or 0) / 2**20) for _, r in shown],
            "o-",
            color=color,
            label=name,
        )
    time.plot(
        values,
        [result["floor"]["seconds"] for result in results],
        ":",
        color=GREY,
        label="floor: its operations at the best rate",
    )
    for panel, label in ((time, "seconds a step"), (memory, "peak memory, MiB")):
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(values, map(str, values))
        panel.minorticks_off()
        tidy(panel, xlabel=_LABELS[axis], ylabel=label)
    time.legend(fontsize="small", frameon=False)
    return figure
