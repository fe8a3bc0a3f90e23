"""Pictures of results: latency CCDF, huge-page coverage over time, holds of mmu_lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tdpmmu.simulation.figures import faults
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.show import label
from tdpmmu.simulation.units import show_bytes, show_ns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_SALT = "tdpmmu"
"""In place of random identifiers in SVG, so that the same results make the same file."""


def plot(results: Sequence[Result], file: IO[bytes], form: str) -> None:
    """Draw all results into one picture.  ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

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
        handles = [
            Line2D([], [], marker=look.marker, markersize=4, label=label(result), **look.line)
            for result, look in zip(results, looks(results), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
        figure.savefig(file, format=form, dpi=130, metadata=_no_date(form))
        pyplot.close(figure)


def _no_date(form: str) -> dict[str, Any]:
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]


@dataclass(frozen=True, slots=True)
class Look:
    """How a result is drawn: the colour says which setting, lines and markers which kernel."""

    color: str
    style: str
    width: float
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """For lines, of which the last kernel's are thin so as to leave others to be seen."""
        return {"color": self.color, "linestyle": self.style, "linewidth": self.width}


def looks(results: Sequence[Result]) -> list[Look]:
    """One for each result."""
    kernels = list(dict.fromkeys(result.kernel for result in results))
    settings = list(dict.fromkeys(setting_of(result) for result in results))
    found = []
    for result in results:
        kernel = kernels.index(result.kernel)
        found.append(
            Look(
                f"C{settings.index(setting_of(result)) % 10}",
                ("-", "--", ":", "-.")[kernel % 4],
                max(1.0, 2.5 - 0.75 * kernel),
                "os^Dv"[kernel % 5],
            )
        )
    return found


def setting_of(result: Result) -> tuple[Any, ...]:
    """All that a run has besides its kernel."""
    return result.knobs, result.seed


def _in_time(axis: Axis) -> None:
    """Ticks of a logarithmic axis, which is in us, with their units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda us, _: show_ns(us * 1e3)))


def _latency(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="page fault latency x",
        ylabel="part of faults longer than x",
        title="page fault latency",
    )
    for result, look in zip(results, looks(results), strict=True):
        histogram = faults(result)
        edges, counts = histogram.arrays()
        if not len(edges):
            continue
        beyond = 1 - np.cumsum(counts) / counts.sum()
        at = np.append(edges[1:], histogram.largest) / 1e3
        beyond[-1] = 0.5 / counts.sum()
        axes.step(at, beyond, where="post", **look.line)
    _in_time(axes.xaxis)
    axes.grid(alpha=0.3, which="major")


def _coverage(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        xlabel="time (s)",
        ylabel="% of mapped memory",
        title="mapped by huge pages",
    )
    for result, look in zip(results, looks(results), strict=True):
        at, huge, small = result.coverage.T
        axes.plot(at / 1e9, 100 * huge / np.maximum(1, huge + small), **look.line)
    axes.grid(alpha=0.3)


def _holds(axes: Axes, results: Sequence[Result]) -> None:
    axes.set(
        yscale="log",
        xlabel="time (s)",
        ylabel="held for",
        title="longest holds of mmu_lock by the host (full: write, hollow: read)",
    )
    for result, look in zip(results, looks(results), strict=True):
        held = [h for h in result.lock_timeline if h.lock == "mmu_lock" and h.kind != "vcpu"]
        for mode, face in (("write", look.color), ("read", "none")):
            chosen = [hold for hold in held if hold.mode == mode and hold.ns]
            axes.scatter(
                [hold.at / 1e9 for hold in chosen],
                [hold.ns / 1e3 for hold in chosen],
                s=18,
                marker=look.marker,
                facecolors=face,
                edgecolors=look.color,
            )
    if axes.collections:
        _in_time(axes.yaxis)
    axes.set_xlim(0, max(result.virtual_ns for result in results) / 1e9)
    axes.grid(alpha=0.3)
