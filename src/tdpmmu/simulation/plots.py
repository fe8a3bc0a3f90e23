"""Pictures of results: latency CCDF, huge-page coverage over time, holds of mmu_lock, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdpmmu.simulation.figures import faults
from tdpmmu.simulation.migration import PAGE
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.show import label
from tdpmmu.simulation.show_migration import migrations, name_of
from tdpmmu.simulation.units import show_bytes, show_ns
from tdpmmu.worlds.simulate.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Floats = npt.NDArray[np.float64]

_SALT = "tdpmmu"
"""In place of random identifiers in SVG, so that the same results make the same file."""


Panel = Callable[["Axes", Sequence[Result]], None]
"""Draws one thing of all results."""


def plot(results: Sequence[Result], file: IO[bytes], form: str) -> None:
    """Draw what recovery does into one picture.  ImportError without matplotlib."""
    _draw(results, file, form, (_latency, _coverage, _holds), label)


def plot_migrations(results: Sequence[Result], file: IO[bytes], form: str) -> None:
    """Draw what each pass sends, and what the guest notices.  ImportError without matplotlib."""
    _draw(results, file, form, (_passes, _latency, _holds), name_of)


def _draw(
    results: Sequence[Result],
    file: IO[bytes],
    form: str,
    panels: Sequence[Panel],
    name: Callable[[Result], str],
) -> None:
    """One picture of several panels, with one legend."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    guest = results[0].guest
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "font.size": 9}):
        figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 11), constrained_layout=True)
        figure.suptitle(
            f"{show_bytes(guest.memory_bytes)} guest, {guest.vcpus} vCPUs, "
            f"{guest.backing} host pages, {_lengths(results)}"
        )
        for panel, one in zip(panels, axes, strict=True):
            panel(one, results)
        handles = [
            Line2D([], [], marker=look.marker, markersize=4, label=name(result), **look.line)
            for result, look in zip(results, looks(results), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
        figure.savefig(file, format=form, dpi=130, metadata=_no_date(form))
        pyplot.close(figure)


def _lengths(results: Sequence[Result]) -> str:
    """How long the runs are."""
    shortest, longest = (show_ns(pick(r.virtual_ns for r in results)) for pick in (min, max))
    return longest if shortest == longest else f"{shortest} to {longest}"


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
    speed = 0 if result.migrated is None else result.migrated.bandwidth
    return result.knobs, result.seed, speed


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
        if histogram.count:
            axes.step(*tail(histogram), where="post", **look.line)
    _in_time(axes.xaxis)
    axes.grid(alpha=0.3, which="major")


def _passes(axes: Axes, results: Sequence[Result]) -> None:
    """Full markers: passes; hollow ones: what is left, as the guest stops or it is given up."""
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="time since the first page was sent",
        ylabel="memory",
        title="sent in each pass, by its end (full); left after the last (hollow)",
    )
    for (_, one), look in zip(migrations(results), looks(results), strict=True):
        if not one.passes:
            continue
        begun = one.passes[0].at_ns
        ends = [(each.at_ns + each.ns - begun) / 1e3 for each in one.passes]
        sent = [each.pages * PAGE for each in one.passes]
        axes.plot(ends, sent, marker=look.marker, markersize=5, **look.line)
        if one.pending:
            axes.plot(
                [ends[-1]],
                [one.pending * PAGE],
                marker=look.marker,
                markerfacecolor="none",
                **look.line,
            )
    _in_time(axes.xaxis)
    _in_bytes(axes.yaxis)
    axes.grid(alpha=0.3, which="major")


def _in_bytes(axis: Axis) -> None:
    """Ticks of a logarithmic axis, which is in bytes, with their units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=2, numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda size, _: show_bytes(int(size))))


def tail(histogram: Histogram) -> tuple[Floats, Floats]:
    """Times in microseconds, and the part of all that is longer from there on.

    It falls where the values are; the last step is half a value, since a logarithm has no zero.
    """
    edges, counts = histogram.arrays()
    at = np.concatenate([edges[:1], edges[:-1], [histogram.largest]]) / 1e3
    beyond = np.append(1, 1 - np.cumsum(counts) / counts.sum())
    beyond[-1] = 0.5 / counts.sum()
    return at, beyond


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
