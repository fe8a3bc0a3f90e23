"""Migrations as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from tdpmmu.simulation.figures import figures
from tdpmmu.simulation.migration import PAGE, Migrated
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.units import show_bytes, show_ns

SHOWN = 6

NOTES = (
    "downtime: what sending the rest takes while the guest stands still; total: with it, or until "
    "it was given up; faults to stalled: of the guest meanwhile, as in nx-recovery.",
    "passes: memory sent in each; what is sent in one is what was written during the one before.",
)


def migrations(results: Sequence[Result]) -> Iterator[tuple[Result, Migrated]]:
    """Those that have one."""
    for result in results:
        if result.migrated is not None:
            yield result, result.migrated


def table(results: Sequence[Result]) -> Table:
    """One row for each migration."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "log", "bandwidth", "converged"):
        shown.add_column(name)
    for name in (
        "passes",
        "total",
        "sent",
        "downtime",
        "faults",
        "p50",
        "p99",
        "max",
        "stalled",
        "flushes",
    ):
        shown.add_column(name, justify="right")
    for result, one in migrations(results):
        row = figures(result)
        sent = sum(each.pages for each in one.passes) + (one.pending if one.converged else 0)
        shown.add_row(
            result.kernel,
            log_of(result),
            f"{show_bytes(one.bandwidth)}/s",
            "yes" if one.converged else "no",
            str(len(one.passes)),
            show_ns(one.total_ns),
            show_bytes(sent * PAGE),
            show_ns(one.downtime_ns) if one.converged else "-",
            f"{row.faults:,}",
            show_ns(row.p50),
            show_ns(row.p99),
            show_ns(row.longest),
            f"{row.stalled:.3%}",
            f"{row.flushes:,}",
        )
    return shown


def log_of(result: Result) -> str:
    """How writes are logged."""
    return f"{result.knobs.dirty_log}, PML" if result.knobs.pml else result.knobs.dirty_log


def name_of(result: Result) -> str:
    """What tells a migration from the others: kernel, log, bandwidth."""
    speed = "" if result.migrated is None else f" {show_bytes(result.migrated.bandwidth)}/s"
    return f"{result.kernel} {log_of(result)}{speed}"


def passes(results: Sequence[Result]) -> Table:
    """What each pass sent."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("memory sent in pass")
    most = max((len(one.passes) for _, one in migrations(results)), default=0)
    for number in range(1, min(most, SHOWN) + 1):
        shown.add_column(str(number), justify="right")
    if most > SHOWN:
        shown.add_column("last", justify="right")
    shown.add_column("left", justify="right")
    for result, one in migrations(results):
        cells = [show_bytes(each.pages * PAGE) for each in one.passes]
        first = (cells + [""] * SHOWN)[: min(most, SHOWN)]
        last = [cells[-1] if len(cells) > SHOWN else ""] if most > SHOWN else []
        shown.add_row(name_of(result), *first, *last, show_bytes(one.pending * PAGE))
    return shown
