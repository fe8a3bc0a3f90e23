"""What lives in the page tables at each marker of a trace.

Markers are what the lab's program writes to ``trace_marker``: ``STEP name``, ``DONE name``, and
``END``; the last row is the end of the trace.  The numbers are those of the kernel's VM statistics
of the same names: ``pages_4k``, ``pages_2m``, ``pages_1g`` (kernels from 5.15 on have these three)
and ``nx_lpage_splits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html import escape

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.detect import FAMILY_NAMES, Detector
from tdpmmu.trace.fields import (
    KNOWN_EVENTS,
    FastPageFault,
    Marker,
    PageFault,
    PageInfo,
    SpteChange,
    SpteRequested,
    parse_fields,
)
from tdpmmu.trace.nx import NxSplits
from tdpmmu.trace.prog import ProgStep
from tdpmmu.trace.records import Lost, Record, Trace, TraceError
from tdpmmu.trace.tables import TdpTables

MAX_HELD = 1 << 16
"""How many records to keep for the detection of the format before settling for the likeliest."""

END_OF_TRACE = "(end of trace)"
STATS = ("pages_4k", "pages_2m", "pages_1g", "nx_lpage_splits")


@dataclass(frozen=True, slots=True)
class Row:
    """The statistics at one marker; ``time`` in seconds; ``nx_lpage_splits`` None: not known."""

    line: int
    time: float
    marker: str
    pages_4k: int
    pages_2m: int
    pages_1g: int
    nx_lpage_splits: int | None


@dataclass(slots=True)
class TraceStats:
    """The whole result.

    ``format_name`` and ``kernel`` are what the trace was read as; ``detected`` says that they were
    found out (the kernel then stands for a family).  ``unit`` is what lines count.  ``doubts`` are
    the reasons, with their lines, why numbers after them may be off, and ``more_doubts`` how many
    more there are; none: exact.
    """

    name: str
    unit: str
    format_name: str
    kernel: str
    detected: bool
    rows: list[Row] = field(default_factory=list)
    events: int = 0
    changes: int = 0
    doubts: list[tuple[int, str]] = field(default_factory=list)
    more_doubts: int = 0
    nx_how: str = ""

    @property
    def exact(self) -> bool:
        """Nothing is missing from the trace and everything in it fits together."""
        return not self.doubts

    def _repr_html_(self) -> str:
        """For notebooks: a row for each marker."""
        names = [one.name for one in fields(Row)]
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(str(getattr(row, name)))}</td>' for name in names)}</tr>"
            for row in self.rows
        )
        sure = "exact" if self.exact else f"not exact from {self.unit} {self.doubts[0][0]} on"
        what = f"{self.name}: {self.format_name}, {self.changes} SPTE changes; {sure}"
        return f"<table><caption>{escape(what)}</caption><tr>{head}</tr>{body}</table>"

    @property
    def kernel_text(self) -> str:
        """The kernel for people."""
        return FAMILY_NAMES[self.kernel] if self.detected else self.kernel


@dataclass(frozen=True, slots=True)
class Difference:
    """One number that is not the kernel's."""

    row: Row
    prog_line: int
    stat: str
    rebuilt: int
    kernel: int


def trace_stats(
    reader: Trace, detector: Detector | None = None, accounting_traced: bool = False
) -> TraceStats:
    """Read a whole trace; TraceError if it is broken or has no TDP MMU in it.

    ``detector`` says what is known of format and kernel beforehand; default: nothing.
    ``accounting_traced``: the NX accounting functions are known to be traced.
    """
    if detector is None:
        detector = Detector()
    held: list[Record | Lost] = []
    records = iter(reader)
    for record in records:
        if _matters(record):
            held.append(record)
        if not isinstance(record, Record) or record.event != "kvm_tdp_mmu_spte_changed":
            continue
        change = parse_fields(record, reader)
        if isinstance(change, SpteChange) and not detector.feed(change):
            reader.fail(
                f"expected SPTEs of one of the known formats and kernels; found level "
                f"{change.level}, {change.old:#x} to {change.new:#x} (--format and --kernel "
                "overrule the detection)",
                record.line,
            )
        if detector.done or len(held) == MAX_HELD:
            break
    fmt = detector.format
    stats = TraceStats(reader.name, reader.unit, fmt.name, fmt.kernel, not detector.kernel_given)
    _Reading(reader, fmt, stats, accounting_traced).run(held, records)
    if not stats.changes:
        raise TraceError(
            f"{reader.name}: {reader.unit} {reader.line}: the trace ends without a "
            "kvm_tdp_mmu_spte_changed; expected that event (is it enabled, and the TDP MMU on?)"
        )
    return stats


def _matters(record: Record | Lost) -> bool:
    if isinstance(record, Lost):
        return True
    return record.event in KNOWN_EVENTS or NxSplits.matters(record)


class _Reading:
    """The loop over the records, with the state that belongs to it."""

    def __init__(
        self, reader: Trace, fmt: SpteFormat, stats: TraceStats, accounting_traced: bool
    ) -> None:
        self._reader = reader
        self._stats = stats
        self._tables = TdpTables(fmt)
        self._nx = NxSplits(fmt, accounting_traced)
        self._last: Record | None = None

    def run(self, held: list[Record | Lost], rest: Iterator[Record | Lost]) -> None:
        stats = self._stats
        for record in held:
            self._take(record)
        held.clear()
        for record in rest:
            self._take(record)
        reader = self._reader
        if self._last is not None:
            stats.rows.append(self._row(self._last, END_OF_TRACE))
        self._tables.finish(reader.line)
        stats.doubts += reader.doubts + self._tables.problems + self._nx.problems
        stats.doubts.sort()
        stats.more_doubts = self._tables.more_problems
        stats.events = reader.records
        stats.nx_how = self._nx.how

    def _take(self, record: Record | Lost) -> None:
        stats = self._stats
        if isinstance(record, Lost):
            count = "an unknown number of" if record.count is None else str(record.count)
            stats.doubts.append((record.line, f"CPU {record.cpu} lost {count} events here"))
            return
        self._last = record
        fields = parse_fields(record, self._reader)
        if isinstance(fields, SpteChange):
            stats.changes += 1
            applied = self._tables.apply(fields, record.pid, record.line)
            self._nx.changed(fields, applied, record.pid, record.line)
        elif isinstance(fields, PageInfo):
            if record.event == "kvm_mmu_get_page" and fields.direct:
                self._tables.new_page(fields.level)
        elif isinstance(fields, PageFault):
            self._nx.fault(fields, record.pid)
        elif isinstance(fields, SpteRequested):
            self._nx.requested(fields, record.pid)
        elif isinstance(fields, FastPageFault):
            if fields.fixed:
                self._tables.fast_page_fault(fields.address >> 12, fields.old, fields.new)
        elif isinstance(fields, Marker):
            if fields.text.startswith(("STEP ", "DONE ")) or fields.text == "END":
                stats.rows.append(self._row(record, fields.text))
        elif fields is None:
            self._nx.function_line(record, self._reader)

    def _row(self, record: Record, marker: str) -> Row:
        pages = self._tables.pages
        return Row(record.line, record.time, marker, pages[1], pages[2], pages[3], self._nx.count)


def compare(stats: TraceStats, steps: list[ProgStep], prog: str) -> tuple[int, list[Difference]]:
    """Set the rows after each step against the kernel's own numbers.

    Returns how many numbers were compared and those that differ; numbers that are not known are
    passed over.  TraceError if trace and log are not of the same run.
    """
    done = [row for row in stats.rows if row.marker.startswith("DONE ")]
    compared = 0
    differences = []
    for i, step in enumerate(steps):
        if i >= len(done) or done[i].marker != f"DONE {step.name}":
            found = f'"{done[i].marker}"' if i < len(done) else "its end"
            raise TraceError(
                f'{prog}: line {step.line}: expected the step in the trace; "DONE {step.name}" '
                f"is not there, but {found} (not the same run?)"
            )
        if step.stats is None:
            continue
        for name in STATS:
            rebuilt = getattr(done[i], name)
            if rebuilt is None:
                continue
            compared += 1
            kernel = step.stats.get(name, 0)
            if rebuilt != kernel:
                differences.append(Difference(done[i], step.line, name, rebuilt, kernel))
    return compared, differences
