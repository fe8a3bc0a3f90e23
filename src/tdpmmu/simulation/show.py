"""Results as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tdpmmu.simulation.figures import figures
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.units import show_bytes, show_ns

NOTES = (
    "p50 to max: of page faults, from the access to when it went through; stalled: the part of the "
    "vCPUs' time in which they do not run their guest, on locks: in which they wait for one;",
    "hold: the longest of mmu_lock for write; huge: the part of mapped memory in huge pages, on "
    "the average; tables: the most memory that page tables took.",
)


def period_text(result: Result) -> str:
    """The period that recovery keeps, or that there is none."""
    knobs = result.knobs
    if not knobs.nx_huge_pages or not knobs.ratio:
        return "off"
    if knobs.period_ms:
        return show_ns(knobs.period_ms * 10**6)
    return f"{show_ns(3600 * 10**9 / knobs.ratio)} (1h/ratio)"


def label(result: Result) -> str:
    """What tells a run from the others: kernel, ratio, period."""
    return f"{result.kernel} ratio {result.knobs.ratio} period {period_text(result)}"


def table(results: Sequence[Result]) -> Table:
    """One row for each result."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "ratio", "period"):
        shown.add_column(name)
    many = len({result.seed for result in results}) > 1
    columns = (["seed"] if many else []) + [
        "faults",
        "p50",
        "p99",
        "p99.9",
        "max",
        "stalled",
        "on locks",
        "hold",
        "flushes",
        "recovered",
        "huge",
        "tables",
    ]
    for name in columns:
        shown.add_column(name, justify="right")
    for result in results:
        row = figures(result)
        shown.add_row(
            result.kernel,
            str(result.knobs.ratio),
            period_text(result),
            *([str(result.seed)] if many else []),
            f"{row.faults:,}",
            show_ns(row.p50),
            show_ns(row.p99),
            show_ns(row.p999),
            show_ns(row.longest),
            f"{row.stalled:.3%}",
            f"{row.waited:.3%}",
            show_ns(row.hold) if row.hold else "-",
            f"{row.flushes:,}",
            f"{row.recovered:,}",
            f"{row.huge:.1%}",
            show_bytes(row.tables),
        )
    return shown


def causes(results: Sequence[Result]) -> Table:
    """Why vCPUs did not run their guest: seconds of all vCPUs together, by cause."""
    names = sorted({name for result in results for name in result.stall_ns})
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("stalls of all vCPUs")
    for name in names:
        shown.add_column(name, justify="right")
    for result in results:
        shown.add_row(label(result), *(show_ns(result.stall_ns.get(name, 0)) for name in names))
    return shown
