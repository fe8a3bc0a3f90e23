"""Pictures of results: latency CCDF, huge-page coverage over time, holds of mmu_lock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tdpmmu.simulation.figures import faults
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.show import label
from tdpmmu.simulation.units import show_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SALT = "tdpmmu"
"""In place of random identifiers in SVG, so that the same results make the same file."""


def plot(results: Sequence[Result], file: IO[bytes], form: str) -> None:
    """Draw all results into one picture.  ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    guest = results[0].guest
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "font.size": 9}):
        figure, axes = pyplot.subplots(3, 1, figsize=(9, 11), constrained_layout=True)
        figure.suptitle(
            f"{show_bytes(guest.memory_bytes)} guest, {guest.vcpus} vCPUs, "
            f"{guest.backing} host pages, {results[0].virtual_ns / 1e9:g} s"
        )
        _latency(axes[0], results)
        _coverage(axes[1], results)
        _holds(axes[2], results)
        axes[0].legend(fontsize=8)
        figure.savefig(file, format=form, dpi=130, metadata=_no_date(form))
        pyplot.close(figure)


def _no_date(form: str) -> dict[str, Any]:
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]


def _latency(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="page fault latency x (us)",
        ylabel="part of faults longer than x",
        title="page fault latency",
    )
    for result in results:
        histogram = faults(result)
        edges, counts = histogram.arrays()
        if not len(edges):
            axes.plot([], [], label=f"{label(result)}: no faults")
            continue
        beyond = 1 - np.cumsum(counts) / counts.sum()
        at = np.append(edges[1:], histogram.largest) / 1e3
        beyond[-1] = 0.5 / counts.sum()
        axes.step(at, beyond, where="post", label=label(result))
    axes.grid(alpha=0.3, which="major")


def _coverage(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        xlabel="time (s)",
        ylabel="% of mapped memory",
        title="mapped by huge pages",
    )
    for result in results:
        at, huge, small = result.coverage.T
        axes.plot(at / 1e9, 100 * huge / np.maximum(1, huge + small), label=label(result))
    axes.grid(alpha=0.3)


def _holds(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        yscale="log",
        xlabel="time (s)",
        ylabel="held for (us)",
        title="longest holds of mmu_lock by the host (full: write, hollow: read)",
    )
    for number, result in enumerate(results):
        held = [h for h in result.lock_timeline if h.lock == "mmu_lock" and h.kind != "vcpu"]
        for mode, face in (("write", f"C{number % 10}"), ("read", "none")):
            chosen = [hold for hold in held if hold.mode == mode and hold.ns]
            axes.scatter(
                [hold.at / 1e9 for hold in chosen],
                [hold.ns / 1e3 for hold in chosen],
                s=14,
                facecolors=face,
                edgecolors=f"C{number % 10}",
            )
    axes.grid(alpha=0.3)
