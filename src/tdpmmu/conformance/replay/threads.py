"""Which call into the MMU each event of a trace belongs to.

A call is what one thread does from the moment something comes from outside (a guest's fault, a
notifier's range, an ioctl, a round of NX recovery) to the last event that it causes.  Tracepoints
that start one: ``kvm_page_fault``, ``kvm_unmap_hva_range``, ``kvm_mmu_zap_all_fast``.  What has
none is known by function lines or probes (:data:`STARTS`), NX recovery by the name of its thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.conformance.replay.calls import (
    Armed,
    Call,
    Kind,
    MmioMarked,
    PageGot,
    PageZap,
)
from tdpmmu.conformance.replay.freezes import Freezes
from tdpmmu.conformance.replay.guest_tables import EVENTS, Walks
from tdpmmu.conformance.replay.races import find_lost, find_publications
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.trace.fields import (
    FastPageFault,
    PageFault,
    PageInfo,
    Probe,
    ProbeReturn,
    SetSpte,
    SpteChange,
    SpteRequested,
    parse_fields,
    probe_number,
)
from tdpmmu.trace.owners import UNMAP
from tdpmmu.trace.records import Lost, Record, Trace

STARTS: dict[str, Kind] = {
    "kvm_tdp_mmu_zap_sp": Kind.RECOVER,
    "kvm_mmu_slot_try_split_huge_pages": Kind.LOG_ON,
    "kvm_mmu_slot_remove_write_access": Kind.LOG_ON,
    "kvm_mmu_zap_collapsible_sptes": Kind.LOG_OFF,
    "kvm_mmu_recover_huge_pages": Kind.LOG_OFF,
    "kvm_arch_flush_shadow_all": Kind.RELEASE,
    "kvm_mmu_notifier_release": Kind.RELEASE,
    "kvm_tdp_mmu_zap_all": Kind.RELEASE,
}
"""Functions that only such a call goes through."""

NOTIFIED = {"kvm_unmap_hva_range": Kind.UNMAP, "kvm_age_hva": Kind.AGE}
"""Ranges of host addresses that the mmu_notifier tells of."""

ROOTS = frozenset({"kvm_tdp_mmu_get_vcpu_root_hpa", "kvm_tdp_mmu_alloc_root"})
"""Where a vCPU looks for its root, in 6.1 and in 6.12.

Without them a root is loaded as late as at the vCPU's next fault.
"""

WORKER = "kvm_nx_huge_page_recovery_worker"
"""From 6.12 on: it sleeps and returns, or does a round and returns, and is called again at once."""

_AT_ONCE = 5_000_000
"""Nanoseconds."""

COMMIT = "kvm_arch_commit_memory_region"
ARM = "kvm_arch_mmu_enable_log_dirty_pt_masked"

_CREATE, _DELETE, _FLAGS_ONLY = 0, 1, 3
"""``enum kvm_mr_change``."""
_KVM_MEM_LOG_DIRTY_PAGES = 1

_WITH_SLOT = frozenset({COMMIT, "kvm_mmu_invalidate_mmio_sptes"})
"""What comes between the publication of a memslot and its probe."""

_SLOT = frozenset({"old_base", "old_pages", "base", "pages", "hva", "flags", "as_id", "change"})
_MASK = frozenset({"base", "offset", "mask"})
"""What their probes tell."""

_LISTS = frozenset({"account_huge_nx_page", "track_possible_nx_huge_page"})
"""Where tables are listed that stand where a huge page could, in 6.1 and in 6.12."""

_WORKER = "kvm-nx-"
_ASLEEP = "prev_state=S "
_VCPU = re.compile(r"vcpu (\d+)")
_RANGE = re.compile(
    r"mmu notifier (?:unmap range|age hva): (?:0x)?([0-9a-f]+) -- (?:0x)?([0-9a-f]+)"
)
_PARAMETER = re.compile(r"STEP param:(\w+)=(\S+)")
_MMIO = re.compile(r"sptep:\S+ gfn ([0-9a-f]+) access [0-9a-f]+ gen ([0-9a-f]+)")


class Threads:
    """Feed it the records of a trace in their order; ``calls`` are then in order of their start."""

    def __init__(self, reader: Trace, fmt: SpteFormat, *, legacy: bool = False) -> None:
        """``legacy``: the trace is of shadow pages, and has no ``kvm_tdp_mmu_spte_changed``."""
        self.legacy = legacy
        self.calls: list[Call] = []
        self.lost: list[Lost] = []
        self.root_level = 4
        self.published_early = 0
        self.paging = False
        self._reader = reader
        self._format = fmt
        self._open: dict[int, Call] = {}
        self._fault: dict[int, Call] = {}
        self._seen: dict[int, int] = {}
        self._freezes = Freezes(fmt)
        self.walks = Walks(reader)

    def feed(self, records: Iterable[Record | Lost]) -> None:
        """Take them in; TraceError for a known event without its fields."""
        for record in records:
            if isinstance(record, Lost):
                self.lost.append(record)
            else:
                self._take(record)
        for call in self._open.values():
            call.cut = not call.over and not _has_loaded(call) and call.leaf is None
        self.published_early = find_publications(self.calls)
        self._name_loads()
        find_lost(self.calls, self._freezes.found)

    def _name_loads(self) -> None:
        """Which vCPU loads a root: the one that its thread runs next, or else ran before.

        If the thread never faults, it is one more, of which nothing else is told.
        """
        vcpus = {call.pid: call.vcpu for call in self.calls if call.kind is Kind.FAULT}
        for call in reversed(self.calls):
            if call.kind is Kind.FAULT:
                vcpus[call.pid] = call.vcpu
            elif call.kind is Kind.LOAD:
                call.vcpu = vcpus.get(call.pid, ~call.pid)

    def _take(self, record: Record) -> None:
        self._freezes.hear(record)
        self._dispatch(record)
        if record.function not in _WITH_SLOT and record.event != "slot":
            self._seen[record.pid] = record.line

    def _dispatch(self, record: Record) -> None:
        event = record.event
        if event == "kvm_tdp_mmu_spte_changed":
            self._changed(record)
        elif event == "kvm_page_fault":
            self._page_fault(record)
        elif event == "kvm_mmu_spte_requested":
            self._requested(record)
        elif event in NOTIFIED:
            self._notified(record)
        elif event == "fast_page_fault":
            self._fast(record)
        elif event == "kvm_mmu_set_spte":
            self._set_spte(record)
        elif event in ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page"):
            if self.legacy:
                self._page(record)
        elif event in EVENTS:
            self.walks.hear(record)
        elif event == "mark_mmio_spte":
            self._mmio(record)
        elif event == "kvm_mmu_zap_all_fast":
            self._zap_all(record)
        elif event == "sched_switch":
            self._switched(record)
        elif event == "tracing_mark_write":
            self._open.pop(record.pid, None)
            self._marker(record)
        elif record.function or isinstance(record.fields, Probe):
            self._function(record)
        elif isinstance(record.fields, ProbeReturn) and record.fields.function == UNMAP:
            self._unmapped(record)

    # --- starts ---------------------------------------------------------------------------------

    def _start(self, kind: Kind, record: Record) -> Call:
        call = Call(kind, record, last=record.line)
        self.calls.append(call)
        self._open[record.pid] = call
        return call

    def _goes_on(self, kind: Kind, record: Record) -> Call:
        """The thread's call of this kind, a new one if it is not in one."""
        call = self._open.get(record.pid)
        return self._start(kind, record) if call is None or call.kind is not kind else call

    def _marker(self, record: Record) -> None:
        """The lab's markers tell of module parameters that are set."""
        match = _PARAMETER.match(record.text)
        if match is not None:
            call = self._start(Kind.PARAMETER, record)
            call.parameter, call.over = (match[1], match[2]), True

    def _page_fault(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, PageFault)
        call = self._start(Kind.FAULT, record)
        match = _VCPU.match(record.text)
        call.vcpu = int(match[1]) if match else record.pid
        call.gfn = fields.address >> 12
        code = fields.error_code
        if self._format.name == "ept":
            write, fetch, present = code & 2, code & 4, code & 0x38
        else:
            write, fetch, present = code & 2, code & 16, code & 1
        call.access = Access.WRITE if write else Access.EXEC if fetch else Access.READ
        call.present = bool(present)
        call.reserved = bool(code & 8) and self._format.name != "ept"
        self._fault[record.pid] = call

    def _notified(self, record: Record) -> None:
        match = _RANGE.match(record.text)
        if match is None:
            self._reader.fail(
                f'{record.event}: expected "mmu notifier ...: A -- B", host addresses', record.line
            )
        call = self._start(NOTIFIED[record.event], record)
        call.start, call.end = int(match[1], 16), int(match[2], 16)

    def _unmapped(self, record: Record) -> None:
        """Without this the last change is all that tells how long an unmap goes on."""
        call = self._open.get(record.pid)
        if call is not None and call.kind is Kind.UNMAP:
            call.last = record.line

    def _function(self, record: Record) -> None:
        name = record.function
        arguments: frozenset[str] = frozenset()
        if isinstance(record.fields, Probe):
            name, arguments = record.fields.function, frozenset(record.fields.arguments)
        if name == COMMIT and arguments >= _SLOT:
            self._slot(record)
        elif name == ARM:
            self._arm(record, arguments >= _MASK)
        elif name == "kvm_mmu_zap_all_fast":
            self._zap_all(record)
        elif name == WORKER:
            self._worker(record)
        elif name in _LISTS:
            call = self._open.get(record.pid)
            if call is not None:
                call.lists.append(record.line)
        elif name in ROOTS and not self.legacy:
            self._start(Kind.LOAD, record).over = True
        elif name in STARTS:
            call = self._goes_on(STARTS[name], record)
            call.protects = call.protects or call.kind is Kind.LOG_ON

    def _worker(self, record: Record) -> None:
        """If it is called again at once, it has not slept, but done a round, which ends here."""
        before = self._open.get(record.pid)
        if before is not None and before.kind is Kind.RECOVER and not before.over:
            before.last = max(before.last, record.line - 1)
        if before is not None and before.kind is Kind.RECOVER and not before.seen:
            before.silent = record.time_ns - before.record.time_ns < _AT_ONCE
        self._start(Kind.RECOVER, record)

    def _switched(self, record: Record) -> None:
        """A worker that goes to sleep has ended its round."""
        call = self._open.get(record.pid)
        if call is not None and call.kind is Kind.RECOVER and _ASLEEP in record.text:
            call.last, call.over = record.line, True

    def _zap_all(self, record: Record) -> None:
        """For a memslot, or because the mitigation was switched."""
        parameter = self._open.get(record.pid)
        call = self._goes_on(Kind.ZAP_ALL, record)
        if parameter is not None and parameter.kind is Kind.PARAMETER:
            call.parameter = parameter.parameter

    def _slot(self, record: Record) -> None:
        """A probe that tells what becomes of a memslot."""

        def number(name: str) -> int:
            return probe_number(record, name, self._reader)

        change = number("change")
        base = number("old_base" if change == _DELETE else "base")
        pages = number("old_pages" if change == _DELETE else "pages")
        log = bool(number("flags") & _KVM_MEM_LOG_DIRTY_PAGES)
        # Of a slot that goes nothing is told but its gfns.
        as_id, hva = (0, 0) if change == _DELETE else (number("as_id"), number("hva") >> 12)
        slot = Memslot(base, pages, as_id, hva, log)
        if change == _DELETE:
            call = self._goes_on(Kind.ZAP_ALL, record)
            call.kind = Kind.SLOT_DELETE
        elif change == _CREATE:
            call = self._start(Kind.SLOT_CREATE, record)
        elif change == _FLAGS_ONLY:
            call = self._start(Kind.LOG_ON if log else Kind.LOG_OFF, record)
        else:
            return
        call.slot = slot
        call.since = self._seen.get(record.pid, 0)
        call.over = change != _FLAGS_ONLY
        call.last = record.line

    def _arm(self, record: Record, told: bool) -> None:
        """The function, or its probe, which tells which gfns."""
        call = self._open.get(record.pid)
        if call is None or call.kind not in (Kind.GET_LOG, Kind.CLEAR_LOG):
            call = self._start(Kind.GET_LOG, record)
        if record.caller and "get_dirty" not in record.caller:
            call.kind = Kind.CLEAR_LOG
        if not told:
            return
        base, offset, mask = (
            probe_number(record, name, self._reader) for name in ("base", "offset", "mask")
        )
        gfns = tuple(base + offset + bit for bit in range(64) if mask >> bit & 1)
        last = next((seen for _, seen in reversed(call.seen) if isinstance(seen, Armed)), None)
        if last is not None and last.gfns[0] >= gfns[0]:
            kind = call.kind
            call = self._start(kind, record)
        call.see(record.line, Armed(gfns))

    # --- what a call does -----------------------------------------------------------------------

    def _current(self, record: Record) -> Call:
        call = self._open.get(record.pid)
        if call is not None and not call.over:
            return call
        worker = record.task.startswith(_WORKER)
        return self._start(Kind.RECOVER if worker else Kind.UNKNOWN, record)

    def _changed(self, record: Record) -> None:
        change = parse_fields(record, self._reader)
        assert isinstance(change, SpteChange)
        self.root_level = max(self.root_level, change.level)
        call = self._current(record)
        call.see(record.line, change)
        fmt = self._format
        leaf = fmt.is_shadow_present(change.new) and fmt.is_last(change.new, change.level)
        if call.kind is Kind.FAULT and leaf:
            call.leaf = change.new
            # The entries of a table that it replaces are still to come.
            table = fmt.is_shadow_present(change.old) and not fmt.is_last(change.old, change.level)
            call.over = not table

    def _requested(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, SpteRequested)
        call = self._fault.pop(record.pid, None)
        if call is None:
            call = self._start(Kind.FAULT, record)
            call.gfn = fields.gfn
        call.requested = fields
        call.see(record.line, fields)
        self._open[record.pid] = call

    def _fast(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, FastPageFault)
        call = self._fault.get(record.pid)
        if call is not None and fields.fixed:
            call.see(record.line, fields)
            call.over = True

    def _set_spte(self, record: Record) -> None:
        fields = parse_fields(record, self._reader)
        assert isinstance(fields, SetSpte)
        call = self._open.get(record.pid)
        if call is None or call.kind is not Kind.FAULT:
            return
        if call.leaf is None:
            call.leaf = fields.spte
        if self.legacy:
            call.see(record.line, fields)
        else:
            # Where the leaf was there already this is all that tells when it was looked for.
            call.last, call.over = record.line, True

    def _page(self, record: Record) -> None:
        """A shadow page is found, made or zapped."""
        page = parse_fields(record, self._reader)
        assert isinstance(page, PageInfo)
        call = self._open.get(record.pid)
        root = page.level == self.root_level
        self.paging = self.paging or (root and not page.direct)
        if record.event == "kvm_mmu_prepare_zap_page":
            in_guest = call is not None and (call.kind is Kind.FAULT or _has_loaded(call))
            # A root that is obsolete is given up before the next one is loaded.
            loads = root and in_guest
            call = self._start(Kind.LOAD, record) if loads else self._current(record)
            call.see(record.line, PageZap(page.gfn, page.level))
            return
        if call is not None and root and _has_loaded(call):
            call = self._start(Kind.LOAD, record)
        elif call is None or root:
            call = self._goes_on(Kind.LOAD, record)
        call.see(record.line, PageGot(page.gfn, page.level, record.text.endswith("new")))

    def _mmio(self, record: Record) -> None:
        match = _MMIO.match(record.text)
        if match is None:
            self._reader.fail(
                'mark_mmio_spte: expected "sptep:P gfn G access A gen N"', record.line
            )
        call = self._open.get(record.pid)
        if call is not None and call.kind is Kind.FAULT:
            call.mmio = call.over = True
            call.see(record.line, MmioMarked(int(match[1], 16), int(match[2], 16)))


def _has_loaded(call: Call) -> bool:
    """Whether a root was found or made: what its thread does next is another call."""
    return call.kind is Kind.LOAD and any(isinstance(seen, PageGot) for _, seen in call.seen)
