"""What recordings are held against: each check is a function that says what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdpmmu.lab.boot import Recording


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found; ``summary`` is a line, ``details`` are lines for those who ask why."""

    check: str
    good: bool
    summary: str
    details: tuple[str, ...] = ()


Check = Callable[[Recording], Outcome | None]
"""None: the check has nothing to say about recordings of this kind."""


def statistics(recording: Recording) -> Outcome | None:
    """``trace stats``: the page tables, rebuilt, against the VM's own statistics after each step.

    Only the TDP MMU reports every change of an SPTE.
    """
    from tdpmmu.trace.prog import read_prog
    from tdpmmu.trace.stats import compare, trace_stats
    from tdpmmu.trace.text import TraceError, open_trace

    if recording.job.setup.mmu != "tdp":
        return None
    try:
        steps = read_prog(str(recording.prog))
        with open_trace(str(recording.trace)) as reader:
            stats = trace_stats(reader)
        compared, differences = compare(stats, steps, str(recording.prog))
    except TraceError as error:
        return Outcome("stats", False, str(error))
    doubts = [f"line {line}: {what}" for line, what in stats.doubts]
    wrong = [
        f"after {one.row.marker.removeprefix('DONE ')}: {one.stat} is {one.kernel} in the kernel, "
        f"{one.rebuilt} rebuilt (line {one.row.line})"
        for one in differences
    ]
    summary = (
        f"{compared - len(differences)} of {compared} numbers are the kernel's own; "
        f"{stats.changes} SPTE changes, {'exact' if stats.exact else f'{len(doubts)} doubts'}"
    )
    return Outcome("stats", stats.exact and not wrong, summary, (*doubts, *wrong))


CHECKS: tuple[Check, ...] = (statistics,)


def run_checks(recording: Recording, checks: tuple[Check, ...] = CHECKS) -> list[Outcome]:
    """Everything that there is to say about a recording."""
    return [outcome for check in checks if (outcome := check(recording)) is not None]
