"""When the thing that does harm went stale: the moments a reader of a counterexample looks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tdpmmu.arch.hardware import Entry, Hardware, VcpuCells, covers
from tdpmmu.events.records import (
    Event,
    FreedPageTouched,
    GuestAccess,
    HostPageReused,
    PageFreed,
    SpteChanged,
)
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import State
from tdpmmu.render.record import RecordLike


@dataclass(frozen=True, slots=True)
class StaleEntry:
    """A translation that a vCPU may use at the end of a run although no page table backs it.

    ``held_since`` and ``stale_since`` are numbers of operations; 0 is before the first.
    """

    vcpu: int
    entry: Entry
    held_since: int
    stale_since: int


@dataclass(slots=True)
class Moments:
    """Notes on operations, by number, and the stale entries that explain them."""

    notes: dict[int, list[str]] = field(default_factory=dict)
    entries: list[StaleEntry] = field(default_factory=list)

    def note(self, number: int, text: str) -> None:
        """Add a note unless it is there already."""
        notes = self.notes.setdefault(number, [])
        if text not in notes:
            notes.append(text)


def moments(records: Sequence[RecordLike], hardware: Hardware, sentence: str) -> Moments:
    """What led to the violation that ``sentence`` reports at the end of ``records``."""
    found = Moments()
    if not records:
        return found
    last = records[-1]
    for event in last.events:
        _resources(records, hardware, event, found)
    usable = [
        (vcpu, entry)
        for vcpu, entry in _stale(hardware, last.after, last.thread)
        if _matters(hardware, vcpu, entry, last.events, sentence)
    ]
    for vcpu, entry in usable:
        stale = StaleEntry(vcpu.number, entry, *_since(records, hardware, vcpu, entry))
        found.entries.append(stale)
        who = f"vCPU{vcpu.number}"
        if stale.stale_since:
            found.note(stale.stale_since, f"stale from here: {who} may still hold it")
        if stale.held_since and stale.held_since != stale.stale_since:
            found.note(stale.held_since, f"{who} may hold the entry from here")
    return found


def _resources(
    records: Sequence[RecordLike], hardware: Hardware, event: Event, found: Moments
) -> None:
    """Memory that is used at the end although it was given away earlier."""
    fmt = hardware.format
    for record in records[:-1]:
        for earlier in record.events:
            if isinstance(event, FreedPageTouched):
                if isinstance(earlier, PageFreed) and earlier.page == event.page:
                    found.note(record.number, f"{event.page} must not be touched from here")
            elif (
                isinstance(event, SpteChanged)
                and isinstance(earlier, HostPageReused)
                and fmt.is_shadow_present(event.new)
                and fmt.is_last(event.new, event.level)
                and _overlap(hardware, event.new, event.level, earlier.pfn, earlier.pages)
            ):
                found.note(record.number, f"pfn {fmt.pfn(event.new):#x} is stale from here")


def _overlap(hardware: Hardware, spte: int, level: int, pfn: int, pages: int) -> bool:
    first = hardware.format.pfn(spte)
    return first < pfn + pages and pfn < first + hardware.geometry.pages(level)


def _stale(hardware: Hardware, state: State, thread: int) -> list[tuple[VcpuCells, Entry]]:
    """Everything that some vCPU may use and no page table backs."""
    step = Step(state, thread)
    found = []
    for vcpu in hardware.vcpus:
        usable = sorted(hardware.usable(step, vcpu))
        live: set[Entry] = set()
        for root in {entry[0] for entry in usable}:
            live |= hardware.reachable(step, root)
        found += [(vcpu, entry) for entry in usable if entry not in live]
    return found


def _matters(
    hardware: Hardware, vcpu: VcpuCells, entry: Entry, events: Sequence[Event], sentence: str
) -> bool:
    """Whether a stale entry has to do with what happens at the end."""
    fmt = hardware.format
    _, _, level, spte = entry
    leaf = fmt.is_last(spte, level)
    for event in events:
        if isinstance(event, HostPageReused):
            if leaf and _overlap(hardware, spte, level, event.pfn, event.pages):
                return True
        elif isinstance(event, PageFreed):
            if not leaf and fmt.pfn(spte) == event.pfn:
                return True
        elif (
            isinstance(event, GuestAccess)
            and event.stale
            and leaf
            and vcpu.number == event.vcpu
            and covers(hardware.geometry, entry, event.gfn)
        ):
            return True
    return f"{spte:#x}" in sentence


def _since(
    records: Sequence[RecordLike], hardware: Hardware, vcpu: VcpuCells, entry: Entry
) -> tuple[int, int]:
    """From which operations on the entry is held, and stale, without a break until the end."""
    held_since = stale_since = 0
    still_stale = True
    for record in reversed(records):
        step = Step(record.before, record.thread)
        if still_stale and entry in hardware.reachable(step, entry[0]):
            stale_since = record.number
            still_stale = False
        if entry not in step[vcpu.held]:
            held_since = record.number
            break
    if still_stale:
        stale_since = held_since
    return held_since, stale_since
