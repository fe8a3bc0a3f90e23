"""Which changes of SPTEs the kernel traces, and how.

The model reports every write of an entry; the kernel's ``handle_changed_spte`` traces what it is
told of, which is less where an entry is frozen for a while (see :mod:`tdpmmu.trace.tables`).
"""

from __future__ import annotations

from collections.abc import Collection

from tdpmmu.arch.hardware import AccessMemory, Hardware
from tdpmmu.arch.table import Header, TablePage, WriteSpte
from tdpmmu.events.records import SpteChanged
from tdpmmu.machine.op import Step
from tdpmmu.render.kvm_events import KvmEvents
from tdpmmu.render.record import RecordLike

_TRACED_LATE = ("6.12", "6.18")
"""Kernels that trace a zap under the read lock as one change, after its flush (from 6.10)."""

_MAPPING = "tdp_mmu_map_handle_target_level"
_FAST = "fast_page_fault"


class SpteLines:
    """Follows one run; ``pages`` are the page table pages by name."""

    def __init__(self, hardware: Hardware, events: KvmEvents, pages: dict[str, TablePage]) -> None:
        self._format = hardware.format
        self._events = events
        self._pages = pages
        self._vcpus = {vcpu.thread: vcpu.number for vcpu in hardware.vcpus}
        self._late = hardware.format.kernel in _TRACED_LATE
        self._removed: set[str] = set()
        self._frozen: dict[tuple[str, int], tuple[int, int]] = {}

    def removed(self, page: str) -> None:
        """A table was taken out: its entries are frozen for good, and each is traced."""
        self._removed.add(page)

    def lines(
        self, record: RecordLike, change: SpteChanged, functions: Collection[str]
    ) -> list[str]:
        """The events for one change, made in these of the kernel's functions."""
        fmt = self._format
        page = self._pages[change.table]
        if isinstance(record.op, AccessMemory):
            return []  # the hardware sets a dirty bit
        if not self._is_tdp(record, page):
            return [self._set(page, change)] if fmt.is_shadow_present(change.new) else []
        if _FAST in functions:
            vcpu = self._vcpus.get(record.thread, 0)
            return [self._events.fast_page_fault(vcpu, page, change.gfn, change.old, change.new)]
        old = self._traced_old(record, change)
        if old is None:
            return []
        events = self._events
        gfn, level, new = change.gfn, change.level, change.new
        lines = [events.spte_changed(change.as_id, gfn, level, old, new)]
        present = fmt.is_shadow_present(new)
        was_leaf = fmt.is_shadow_present(old) and fmt.is_last(old, level)
        if was_leaf and present and not fmt.is_last(new, level):
            lines.append(events.split_huge_page(gfn, level, old))
        if _MAPPING in functions and (present or fmt.is_mmio(new)):
            lines.append(self._set(page, change))
        return lines

    def _traced_old(self, record: RecordLike, change: SpteChanged) -> int | None:
        """The old value that the kernel traces; None where it traces nothing."""
        fmt = self._format
        key = (change.table, change.index)
        if fmt.is_frozen(change.new) and change.table not in self._removed:
            self._frozen[key] = (record.thread, change.old)
            return None if self._late else change.old
        freezer, was = self._frozen.pop(key, (None, change.old))
        ends_freeze = isinstance(record.op, WriteSpte) and change.new == fmt.nonpresent
        if fmt.is_frozen(change.old) and freezer == record.thread and ends_freeze:
            return was if self._late else None
        return change.old

    def _set(self, page: TablePage, change: SpteChanged) -> str:
        return self._events.set_spte(page, change.index, change.gfn, change.level, change.new)

    @staticmethod
    def _is_tdp(record: RecordLike, page: TablePage) -> bool:
        header: Header | None = Step(record.after, record.thread)[page.header]
        return header is None or header.tdp
