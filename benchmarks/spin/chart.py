"""Time and memory by size, as bars on logarithmic axes."""

from __future__ import annotations

from pathlib import Path

from spin.running import UNFINISHED, Run

COLOURS = ("#1b6ca8", "#8fbfe0", "#b5452f", "#dd8a6a", "#6b6b6b", "#b0b0b0")


def write(path: Path, measured: dict[str, dict[str, Run]]) -> None:
    """An SVG file, the same for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tdpmmu"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    names = list(next(iter(measured.values())))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        runs = [runs[name] for runs in measured.values()]
        at = [place + (number - (len(names) - 1) / 2) * width for place in range(len(runs))]
        for axes, heights in (
            (times, [run.total for run in runs]),
            (memory, [run.memory for run in runs]),
        ):
            bars = axes.bar(at, heights, width * 0.92, color=COLOURS[number], label=name)
            for bar, run in zip(bars, runs, strict=True):
                if run.verdict == UNFINISHED:
                    bar.set_hatch("///")
                    bar.set_edgecolor("white")
    for axes, title in ((times, "prompt to verdict, CPU seconds"), (memory, "peak memory, MiB")):
        axes.set_yscale("log")
        axes.set_xticks(range(len(measured)), list(measured))
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*times.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.text(0.5, 0.95, "hatched: not finished", ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 0.95))
    figure.savefig(path, metadata={"Date": None})
