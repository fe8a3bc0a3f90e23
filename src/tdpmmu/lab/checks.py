"""What recordings are held against: each check is a function that says what came of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tdpmmu.lab.boot import Recording
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.prog import ProgStep, read_prog
from tdpmmu.trace.records import TraceError
from tdpmmu.trace.stats import Difference, compare, trace_stats


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found.

    ``kind`` is empty if all is good, else a word for what sort of thing is wrong: shrinking keeps
    to failures of the same check and kind.  ``summary`` is a line; ``details`` are lines for those
    who ask why.
    """

    check: str
    kind: str
    summary: str
    details: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not self.kind


Check = Callable[[Recording], Outcome | None]
"""None: the check has nothing to say about recordings of this kind."""


def statistics(recording: Recording) -> Outcome | None:
    """``trace stats``: the page tables, rebuilt, against the VM's own statistics after each step.

    Only the TDP MMU reports every change of an SPTE, and it does not say of which VM.
    """
    if recording.job.setup.mmu != "tdp" or recording.job.setup.vms > 1:
        return None
    try:
        steps = read_prog(str(recording.prog))
        if _never_mapped(steps):
            return None
        with open_trace(str(recording.trace)) as reader:
            stats = trace_stats(reader, accounting_traced=True)
        compared, differences = compare(stats, steps, str(recording.prog))
    except TraceError as error:
        return Outcome("stats", "error", str(error))
    logged = next((step.line for step in steps if step.name == "dlog+"), None)
    wrong = [one for one in differences if not _unseen(one, logged)]
    unseen = len(differences) - len(wrong)
    summary = f"{compared - len(differences)} of {compared} numbers are the kernel's own"
    if unseen:
        summary += f", {unseen} could not be seen"
    summary += f"; {stats.changes} SPTE changes"
    if not stats.exact:
        summary += f", not exact from line {stats.doubts[0][0]} on"
    details = [f"line {line}: {what}" for line, what in stats.doubts]
    details += [
        f"after {one.row.marker.removeprefix('DONE ')}: {one.stat} is {one.kernel} in the kernel, "
        f"{one.rebuilt} rebuilt (line {one.row.line})"
        for one in wrong
    ]
    return Outcome("stats", "numbers" if wrong else "", summary, tuple(details))


def _never_mapped(steps: list[ProgStep]) -> bool:
    """No page was ever mapped, so that there is nothing to rebuild."""
    return not any(name.startswith("pages_") for step in steps for name in step.stats or ())


def _unseen(one: Difference, logged: int | None) -> bool:
    """A difference that the trace cannot show.

    Of a table in a memslot under dirty logging the recovery worker stops counting the NX split and
    keeps the table; compilers inline that, so no function line says so.
    """
    late = logged is not None and one.prog_line > logged
    return one.stat == "nx_lpage_splits" and late and one.rebuilt > one.kernel


def replay(recording: Recording) -> Outcome | None:
    """``trace replay``: the model, driven by the trace, against every SPTE change of the kernel."""
    from tdpmmu.conformance.replay.report import to_text
    from tdpmmu.conformance.replay.run import replay_trace

    try:
        if _never_mapped(read_prog(str(recording.prog))):
            return None
        with open_trace(str(recording.trace)) as reader:
            result = replay_trace(
                reader,
                kernel=recording.kernel.version,
                format_name="shadow" if recording.job.setup.mmu == "shadow" else "npt",
            )
    except TraceError as error:
        return Outcome("replay", "error", str(error))
    summary = f"{result.agree} of {result.changes} SPTE changes agree"
    kind = "" if result.agrees else "divergence"
    return Outcome(
        "replay", kind, summary, () if result.agrees else (*to_text(result).split("\n"),)
    )


def verify(recording: Recording) -> Outcome:
    """``trace verify``: the rules that the events allow to check."""
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.verify.report import summary, to_text
    from tdpmmu.trace.verify.verifier import verify as verify_trace

    try:
        with open_trace(str(recording.trace)) as reader:
            result = verify_trace(reader, Detector("npt", recording.kernel.version))
    except TraceError as error:
        return Outcome("verify", "error", str(error))
    kind = " ".join(sorted(result.counts)) or ("doubts" if result.problems else "")
    details = (*to_text(result).split("\n"),) if kind else ()
    return Outcome("verify", kind, summary(result), details)


CHECKS: tuple[Check, ...] = (statistics, replay, verify)


def run_checks(recording: Recording, checks: tuple[Check, ...] = CHECKS) -> list[Outcome]:
    """Everything that there is to say about a recording; a check that fails is bad, too."""
    outcomes = []
    for check in checks:
        try:
            outcome = check(recording)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__} in {where.name}: {error}"
            outcome = Outcome(
                check.__name__, "exception", why, tuple(traceback.format_exc().split("\n"))
            )
        if outcome is not None:
            outcomes.append(outcome)
    return outcomes
