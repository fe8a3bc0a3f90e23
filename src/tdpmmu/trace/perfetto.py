"""A kernel's trace as a timeline for the Perfetto UI.

Tracks, from the top: the program's steps (markers ``STEP name`` and ``DONE name``), each task with
its page faults and probed functions as slices, vCPUs and KVM's locks as far as they are traced, and
the VM's: the pages that the rebuilt tables map as counters, SPTE changes, TLB flushes, page tables.

A probed function is a slice if its return has a probe, too.  No event says where a page fault ends:
its slice reaches to the last MMU event of its task before the next fault, entry to the guest, exit
to userspace, or marker.
"""

from __future__ import annotations

from typing import IO

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.timeline.builder import Timeline
from tdpmmu.trace.fields import (
    FastPageFault,
    Marker,
    PageFault,
    PageInfo,
    ProbeReturn,
    SpteChange,
    parse_fields,
    probed_function,
)
from tdpmmu.trace.guest import GuestTracks
from tdpmmu.trace.records import Lost, Record, Trace
from tdpmmu.trace.survey import Survey
from tdpmmu.trace.tables import TdpTables
from tdpmmu.trace.tasks import TaskTracks

FLUSHING = "kvm_flush_remote_tlbs"
"""What the names of the functions that flush start with."""

_FREEING = "tdp_mmu_free_sp"
_ENDS_FAULT = frozenset({"kvm_entry", "kvm_exit", "kvm_userspace_exit"})
_IN_FAULT = frozenset(
    {
        "kvm_mmu_spte_requested",
        "kvm_mmu_set_spte",
        "kvm_mmu_pagetable_walk",
        "kvm_mmu_paging_element",
        "kvm_mmu_set_accessed_bit",
        "kvm_mmu_set_dirty_bit",
        "mark_mmio_spte",
        "handle_mmio_page_fault",
        "check_mmio_spte",
    }
)
"""MMU events of a fault beside those with tracks of their own."""

_SIZES = {1: "4K", 2: "2M", 3: "1G"}
_FETCH = {"npt": 1 << 4, "ept": 1 << 2}
_WRITE = 1 << 1
_LATEST = 1 << 53
"""Times in nanoseconds up to here are exact."""


class Conversion:
    """Feed it the records in order, then :meth:`finish`.

    ``unit`` is what lines count.  ``tables`` are the rebuilt page tables, None if the TDP
    MMU traced nothing.
    """

    def __init__(self, file: IO[bytes], reader: Trace, found: Survey, title: str) -> None:
        """PerfettoMissing without the ``perfetto`` package."""
        self._reader = reader
        self._format = found.format
        self._found = found
        self.tables = TdpTables(found.format) if found.format is not None else None
        self.events = 0
        self.unit = reader.unit
        self._doubts: list[tuple[int, str]] = []
        self._timeline = timeline = Timeline(file, title)
        self._steps = timeline.track("steps")
        self._tasks = TaskTracks(timeline)
        self._guest = GuestTracks(timeline)
        vm = timeline.track("VM")
        self._counters = {}
        if self.tables is not None:
            self._counters = {
                level: timeline.counter(f"pages_{name}", "pages", vm)
                for level, name in ((1, "4k"), (2, "2m"), (3, "1g"))
            }
        self._sptes = timeline.track("SPTE changes", vm)
        self._flushes = timeline.track("TLB flushes", vm)
        self._pages = timeline.track("page tables", vm)
        self._lost_track = 0
        self._now = 0

    def take(self, record: Record | Lost) -> None:
        """The next record; TraceError if a known event has not its fields."""
        if isinstance(record, Lost):
            self._lose(record)
            return
        self.events += 1
        self._now = now = self._time(record)
        fields = parse_fields(record, self._reader)
        match fields:
            case SpteChange():
                self._changed(fields, record, now)
            case PageInfo():
                self._page(fields, record, now)
            case PageFault():
                details = {"address": f"{fields.address:#x}", "code": f"{fields.error_code:#x}"}
                self._tasks.fault(record, now, self._kind(fields), details)
            case FastPageFault():
                if fields.fixed and self.tables is not None:
                    self.tables.fast_page_fault(fields.address >> 12, fields.old, fields.new)
                self._tasks.goes_on(record, now)
            case Marker(text):
                self._tasks.end_fault(record)
                self._mark(text, record, now)
            case None:
                self._other(record, now)
            case _:
                self._tasks.goes_on(record, now)
        self._guest.take(record, now)

    def finish(self) -> None:
        """End what is open."""
        self._tasks.finish()
        if self.tables is not None:
            self.tables.finish(self._reader.line)
        self._timeline.close(self._now)

    @property
    def doubt(self) -> tuple[int, str] | None:
        """Why the pages may be wrong, and from which line on; None if they are exact."""
        doubts = self._doubts + self._reader.doubts
        doubts += self.tables.problems if self.tables is not None else []
        return min(doubts, default=None)

    def _time(self, record: Record) -> int:
        now = round(record.time * 1e9)
        if now > _LATEST:
            self._reader.fail(
                f"expected a time in seconds; found {record.time:.0f} (does the trace clock count "
                "something else?)",
                record.line,
            )
        return now

    def _lose(self, lost: Lost) -> None:
        if not self._lost_track:
            self._lost_track = self._timeline.track("lost events")
        count = "an unknown number of" if lost.count is None else str(lost.count)
        name = f"CPU {lost.cpu} lost {count} events"
        self._doubts.append((lost.line, name))
        self._timeline.instant(self._lost_track, self._now, name)

    def _mark(self, text: str, record: Record, now: int) -> None:
        """``STEP`` begins a slice, ``DONE`` ends it; all other markers are instants."""
        timeline, steps = self._timeline, self._steps
        word, _, name = text.partition(" ")
        if word == "STEP" and name:
            timeline.state(steps, now, "")
            timeline.begin(steps, now, name)
        elif word == "DONE" and name:
            timeline.state(steps, now, "")
        else:
            timeline.instant(steps, now, text, _who(record))

    def _changed(self, change: SpteChange, record: Record, now: int) -> None:
        self._tasks.goes_on(record, now)
        fmt, tables = self._format, self.tables
        assert fmt is not None
        assert tables is not None
        level = change.level
        old, new = _kind_of(fmt, change.old, level), _kind_of(fmt, change.new, level)
        details = {
            "gfn": f"{change.gfn:#x}",
            "old": f"{change.old:#x}",
            "new": f"{change.new:#x}",
            "address space": change.as_id,
            **_who(record),
        }
        name = f"{_SIZES.get(level, f'level {level}')}: {old} -> {new}"
        self._timeline.instant(self._sptes, now, name, details)
        tables.apply(change, record.pid, record.line)
        for one, counter in self._counters.items():
            self._timeline.count(counter, now, tables.pages[one])

    def _page(self, page: PageInfo, record: Record, now: int) -> None:
        self._tasks.goes_on(record, now)
        new = record.event == "kvm_mmu_get_page"
        if new and page.direct and self.tables is not None:
            self.tables.new_page(page.level)
        details = {"gfn": f"{page.gfn:#x}", "fields": record.text, **_who(record)}
        name = f"{'get' if new else 'zap'} level {page.level} table"
        self._timeline.instant(self._pages, now, name, details)

    def _other(self, record: Record, now: int) -> None:
        """Function lines, probes, and events that the reader does not know."""
        if record.function:
            if record.function not in self._found.returning:
                self._tasks.instant(record, now, record.function, {"caller": record.caller})
            if record.function not in self._found.probed:
                self._function(record.function, {}, record, now)
        elif (entry := probed_function(record)) is not None:
            function, arguments = entry
            details = {"probe": record.event, **arguments}
            if function in self._found.returning:
                self._tasks.enter(record, now, function, details)
            self._function(function, details, record, now)
        elif isinstance(record.fields, ProbeReturn):
            returns = record.text.partition(")")[2].strip()
            self._tasks.leave(record, now, record.fields.function, {"returns": returns})
        elif record.event in _ENDS_FAULT:
            self._tasks.end_fault(record)
        elif record.event in _IN_FAULT:
            self._tasks.goes_on(record, now)

    def _function(self, function: str, details: dict[str, str], record: Record, now: int) -> None:
        """A function that has a place among the VM's tracks."""
        if function.startswith(FLUSHING):
            self._tasks.goes_on(record, now)
            self._timeline.instant(self._flushes, now, function, {**details, **_who(record)})
        elif function.startswith(_FREEING):
            self._timeline.instant(self._pages, now, "free table", {**details, **_who(record)})

    def _kind(self, fault: PageFault) -> str:
        """What the guest wanted, if the format of the error code is known."""
        if self._format is None:
            return "page fault"
        if fault.error_code & _FETCH["ept" if self._format.name == "ept" else "npt"]:
            return "page fault (fetch)"
        return f"page fault ({'write' if fault.error_code & _WRITE else 'read'})"


def _who(record: Record) -> dict[str, int | str]:
    return {"task": f"{record.task}-{record.pid}", "CPU": record.cpu, "line": record.line}


def _kind_of(fmt: SpteFormat, spte: int, level: int) -> str:
    """An SPTE in one word."""
    if fmt.is_frozen(spte):
        return "frozen"
    if fmt.is_shadow_present(spte):
        return "leaf" if fmt.is_last(spte, level) else "table"
    return "MMIO" if fmt.is_mmio(spte) else "none"
