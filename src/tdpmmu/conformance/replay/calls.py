"""Which call into the MMU each event of a trace belongs to.

A call is what one thread does from the moment something comes from outside (a guest's fault, a
notifier's range, an ioctl, a round of NX recovery) to the last event that it causes.  Tracepoints
that start one: ``kvm_page_fault``, ``kvm_unmap_hva_range``.  What has none is known by function
lines or probes of the functions in ``STARTS``, NX recovery by the name of its thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.trace.fields import (
    FastPageFault,
    PageFault,
    SetSpte,
    SpteChange,
    SpteRequested,
    parse_fields,
    probed_function,
)
from tdpmmu.trace.records import Lost, Record, Trace

FAULT, RECOVER, UNMAP, RELEASE = "guest fault", "NX recovery", "unmap", "release"
LOG_ON, LOG_OFF, GET_LOG, CLEAR_LOG = (
    "dirty logging on",
    "dirty logging off",
    "get dirty log",
    "clear dirty log",
)
ZAP_ALL = "zap all"
UNKNOWN = "unknown"

STARTS: dict[str, str] = {
    "kvm_nx_huge_page_recovery_worker": RECOVER,
    "kvm_tdp_mmu_zap_sp": RECOVER,
    "kvm_mmu_slot_try_split_huge_pages": LOG_ON,
    "kvm_tdp_mmu_try_split_huge_pages": LOG_ON,
    "kvm_mmu_slot_remove_write_access": LOG_ON,
    "kvm_mmu_zap_collapsible_sptes": LOG_OFF,
    "kvm_tdp_mmu_zap_collapsible_sptes": LOG_OFF,
    "kvm_mmu_zap_all_fast": ZAP_ALL,
    "kvm_tdp_mmu_invalidate_all_roots": ZAP_ALL,
    "kvm_arch_flush_shadow_all": RELEASE,
    "kvm_mmu_notifier_release": RELEASE,
    "kvm_tdp_mmu_zap_all": RELEASE,
}
"""Functions that only such a call goes through."""

_LOG = "kvm_arch_mmu_enable_log_dirty_pt_masked"
_WORKER = "kvm-nx-"
_VCPU = re.compile(r"vcpu (\d+)")
_RANGE = re.compile(r"mmu notifier unmap range: (?:0x)?([0-9a-f]+) -- (?:0x)?([0-9a-f]+)")

Seen = SpteChange | SpteRequested | FastPageFault


@dataclass(slots=True)
class Call:
    """``seen`` is what it did, with the numbers of the lines; ``last`` the line of the last event.

    For a fault: ``vcpu``, ``gfn``, ``access``, ``present``, ``reserved`` from the error code, and
    what it found.  ``start``, ``end``: of a notifier's range, host addresses (``hva``) or gfns.
    ``over``: nothing more can belong to it.  ``cut``: the trace ends before one knows.
    """

    kind: str
    record: Record
    seen: list[tuple[int, Seen]] = field(default_factory=list)
    last: int = 0
    vcpu: int = 0
    gfn: int = 0
    access: Access = Access.READ
    present: bool = False
    reserved: bool = False
    requested: SpteRequested | None = None
    leaf: int | None = None
    mmio: bool = False
    start: int = 0
    end: int = 0
    hva: bool = False
    over: bool = False
    cut: bool = False

    @property
    def pid(self) -> int:
        """The thread."""
        return self.record.pid

    @property
    def as_id(self) -> int:
        """The address space, as far as its changes say."""
        return next((seen.as_id for _, seen in self.seen if isinstance(seen, SpteChange)), 0)


class Calls:
    """Feed it the records of a trace in their order; ``calls`` are then in order of their start."""

    def __init__(self, reader: Trace, fmt: SpteFormat) -> None:
        self.calls: list[Call] = []
        self.lost: list[Lost] = []
        self.root_level = 4
        self._reader = reader
        self._format = fmt
        self._open: dict[int, Call] = {}
        self._fault: dict[int, Call] = {}

    def feed(self, records: Iterable[Record | Lost]) -> None:
        """Take them in; TraceError for a known event without its fields."""
        for record in records:
            if isinstance(record, Lost):
                self.lost.append(record)
            else:
                self._take(record)
        for call in self._open.values():
            call.cut = not call.over

    def _take(self, record: Record) -> None:
        event = record.event
        if event == "kvm_tdp_mmu_spte_changed":
            self._changed(record)
        elif event == "kvm_page_fault":
            self._page_fault(record)
        elif event == "kvm_mmu_spte_requested":
            self._requested(record)
        elif event == "kvm_unmap_hva_range":
            self._unmap(record)
        elif event == "fast_page_fault":
            self._fast(record)
        elif event == "kvm_mmu_set_spte":
            self._set_spte(record)
        elif event == "mark_mmio_spte":
            self._mmio(record)
        elif event == "tracing_mark_write":
            self._open.pop(record.pid, None)
        elif record.function or record.text.startswith("("):
            self._function(record)

    # --- starts ---------------------------------------------------------------------------------

    def _start(self, kind: str, record: Record) -> Call:
        call = Call(kind, record, last=record.line)
        self.calls.append(call)
        self._open[record.pid] = call
        return call

    def _page_fault(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, PageFault)
        call = self._start(FAULT, record)
        match = _VCPU.match(record.text)
        call.vcpu = int(match[1]) if match else record.pid
        call.gfn = fields.address >> 12
        code = fields.error_code
        if self._format.name == "ept":
            write, fetch, present = code & 2, code & 4, code & 0x38
        else:
            write, fetch, present = code & 2, code & 16, code & 1
            call.reserved = bool(code & 8)
        call.access = Access.WRITE if write else Access.EXEC if fetch else Access.READ
        call.present = bool(present)
        self._fault[record.pid] = call

    def _unmap(self, record: Record) -> None:
        match = _RANGE.match(record.text)
        if match is None:
            self._reader.fail(
                'kvm_unmap_hva_range: expected "mmu notifier unmap range: A -- B"', record.line
            )
        call = self._start(UNMAP, record)
        call.start, call.end, call.hva = int(match[1], 16), int(match[2], 16), True

    def _function(self, record: Record) -> None:
        name, caller = record.function, record.caller
        if not name:
            probe = probed_function(record)
            if probe is None:
                return
            name = probe[0]
        if name == _LOG:
            kind = CLEAR_LOG if "clear" in caller else GET_LOG
        elif name in STARTS:
            kind = STARTS[name]
        else:
            return
        call = self._open.get(record.pid)
        if call is None or call.kind != kind or call.over:
            # What goes through the worker's function need not be a round.
            self._start(kind, record)

    # --- what a call does -----------------------------------------------------------------------

    def _current(self, record: Record) -> Call:
        call = self._open.get(record.pid)
        if call is not None and not call.over:
            return call
        worker = record.task.startswith(_WORKER)
        return self._start(RECOVER if worker else UNKNOWN, record)

    def _see(self, call: Call, record: Record, seen: Seen) -> None:
        call.seen.append((record.line, seen))
        call.last = record.line

    def _changed(self, record: Record) -> None:
        change = parse_fields(record, self._reader)
        assert isinstance(change, SpteChange)
        self.root_level = max(self.root_level, change.level)
        call = self._current(record)
        self._see(call, record, change)
        fmt = self._format
        leaf = fmt.is_shadow_present(change.new) and fmt.is_last(change.new, change.level)
        if call.kind == FAULT and leaf:
            call.leaf = change.new
            call.over = True

    def _requested(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, SpteRequested)
        call = self._fault.get(record.pid)
        if call is None or call.requested is not None:
            call = self._start(FAULT, record)
            call.gfn = fields.gfn
        call.requested = fields
        self._see(call, record, fields)
        self._fault.pop(record.pid, None)
        self._open[record.pid] = call

    def _fast(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, FastPageFault)
        call = self._fault.get(record.pid)
        if call is not None and fields.fixed:
            self._see(call, record, fields)
            call.over = True

    def _set_spte(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, SetSpte)
        call = self._open.get(record.pid)
        if call is not None and call.kind == FAULT:
            call.leaf = fields.spte
            call.over = True

    def _mmio(self, record: Record) -> None:
        call = self._open.get(record.pid)
        if call is not None and call.kind == FAULT:
            call.mmio = True
