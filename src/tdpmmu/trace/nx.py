"""Count NX huge page splits (``nx_lpage_splits``) along with a trace.

The kernel raises the statistic in ``track_possible_nx_huge_page`` (``account_huge_nx_page`` up to
6.1), for a table that ``kvm_tdp_mmu_map`` links because an instruction fetch may not use the huge
page that could be there (``huge_page_disallowed`` and ``req_level`` not below the entry's level).
It lowers it in ``untrack_possible_nx_huge_page`` (``unaccount_huge_nx_page``): when the table is
removed, or when the recovery worker meets a slot under dirty logging and keeps the table.  No
tracepoint says either, and ``req_level`` is in no event, so there are two ways to know:

- **from function lines** of the accounting function: each belongs to the table which its thread
  linked last.  Exact.
- **from faults**: ``kvm_page_fault`` is a fetch, the thread's ``kvm_mmu_spte_requested`` asks for
  4 KiB, and the table replaces an NX leaf, or gfn and pfn are equally aligned, as for the frames
  of a huge page.  An inference: wrong if small frames happen to be aligned, or if dirty logging is
  on and the trace does not show it.  The recovery worker's zaps (``kvm_tdp_mmu_zap_sp``) are a
  check on it: it zaps nothing that does not count.

Removed tables are seen without further events.  The worker's other way out is seen if
``unaccount_nx_huge_page`` has a probe with the gfn, or ``untrack_possible_nx_huge_page`` function
lines; the worker takes the table which counts longest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.fields import (
    FunctionCall,
    PageFault,
    Probe,
    SpteChange,
    SpteRequested,
    probe_number,
)
from tdpmmu.trace.records import Record, Trace
from tdpmmu.trace.tables import Applied, Table

ACCOUNT = frozenset({"track_possible_nx_huge_page", "account_huge_nx_page"})
UNACCOUNT = frozenset(
    {"untrack_possible_nx_huge_page", "unaccount_nx_huge_page", "unaccount_huge_nx_page"}
)
ZAP_SP = frozenset({"kvm_tdp_mmu_zap_sp", "kvm_tdp_mmu_zap_possible_nx_huge_page"})
"""The recovery worker's zap of a table; renamed in 6.17 or 6.18."""

_LOGGING_ON = frozenset({"kvm_mmu_slot_remove_write_access", "kvm_tdp_mmu_wrprot_slot"})
_LOGGING_OFF = frozenset({"kvm_mmu_zap_collapsible_sptes", "kvm_mmu_recover_huge_pages"})
_NAMES = ACCOUNT | UNACCOUNT | ZAP_SP | _LOGGING_ON | _LOGGING_OFF
_FETCH = {"npt": 1 << 4, "ept": 1 << 2}
"""``PFERR_FETCH_MASK``; for EPT the event has the exit qualification, whose bit 2 is the fetch."""

_PFN_BITS = 52
"""A pfn with higher bits is none: ``KVM_PFN_NOSLOT``, ``KVM_PFN_ERR_MASK``."""

ENABLE = (
    "enable the events kvm_page_fault and kvm_mmu_spte_requested, or function tracing of "
    "track_possible_nx_huge_page (account_huge_nx_page up to 6.1)"
)


@dataclass(slots=True)
class _Thread:
    """What a thread is about: its fault, the request that came of it, the table it linked."""

    fetch: bool = False
    request: SpteRequested | None = None
    request_fetch: bool = False
    linked: Table | None = None
    zapping: bool = False


class NxSplits:
    """``nx_lpage_splits`` of the TDP MMU, from the trace's records in their order.

    ``accounting_traced``: the accounting functions are known to be traced, so that there is nothing
    to infer even before their first line.
    """

    def __init__(self, fmt: SpteFormat, accounting_traced: bool = False) -> None:
        self.problems: list[tuple[int, str]] = []
        self._fmt = fmt
        self._fetch = _FETCH["ept" if fmt.name == "ept" else "npt"]
        self._threads: dict[int, _Thread] = {}
        self._counted: dict[int, Table] = {}
        self._account_lines = accounting_traced
        self._saw_requests = self._saw_faults = False
        self._saw_links = False
        self._mitigated = True
        self._logging = False
        self._seen_levels = {1, 2}

    @property
    def count(self) -> int | None:
        """The statistic now; None if the trace has not what it takes to know."""
        judged = self._saw_faults and self._saw_requests
        if self._saw_links and not (judged or self._account_lines):
            return None
        return len(self._counted)

    @property
    def how(self) -> str:
        """How :attr:`count` is known, in a sentence."""
        if self._account_lines:
            return "counted from function lines"
        if self.count is None:
            return f"not known: {ENABLE}"
        return "inferred from faults, since the trace has no lines of the accounting functions"

    def fault(self, fault: PageFault, pid: int) -> None:
        """``kvm_page_fault`` of thread ``pid``."""
        self._saw_faults = True
        self._thread(pid).fetch = bool(fault.error_code & self._fetch)

    def requested(self, request: SpteRequested, pid: int) -> None:
        """``kvm_mmu_spte_requested``; without a fault of its own (prefetch) it is no fetch."""
        self._saw_requests = True
        thread = self._thread(pid)
        thread.request = request
        thread.request_fetch = thread.fetch and not request.pfn >> _PFN_BITS
        thread.fetch = False

    def changed(self, change: SpteChange, applied: Applied, pid: int, line: int) -> None:
        """A change that the tables have taken in as ``applied``."""
        fmt = self._fmt
        if change.level > 1 and fmt.is_shadow_present(change.new) and fmt.is_large(change.new):
            self._seen_levels.add(change.level)
            if fmt.is_executable(change.new):
                self._mitigated = False
        if applied.unlinked is not None:
            self._unlinked(applied.unlinked, pid, line)
        if applied.linked is not None:
            self._saw_links = True
            self._thread(pid).linked = applied.linked
            if not self._account_lines:
                self._judge(change, applied.linked, applied.replaced_leaf, pid)

    def function_line(self, record: Record, reader: Trace) -> None:
        """Function tracer line or probe: accounting, zaps of the worker, dirty logging.

        TraceError, through ``reader``, for a probe without the number it should have.
        """
        fields = record.fields
        if not isinstance(fields, FunctionCall | Probe):
            return
        name = fields.function
        if name in ZAP_SP:
            self._thread(record.pid).zapping = True
        elif name in ACCOUNT:
            self._account(record)
        elif name in UNACCOUNT:
            self._unaccount(record, reader)
        elif name in _LOGGING_ON:
            self._logging = True
        elif name in _LOGGING_OFF:
            self._logging = False

    @staticmethod
    def matters(record: Record) -> bool:
        """Would :meth:`function_line` take note of this record?"""
        return isinstance(record.fields, FunctionCall | Probe) and record.fields.function in _NAMES

    def _thread(self, pid: int) -> _Thread:
        return self._threads.setdefault(pid, _Thread())

    def _count(self, table: Table) -> None:
        table.nx = table.nx_once = True
        self._counted[id(table)] = table

    def _uncount(self, table: Table) -> None:
        table.nx = False
        del self._counted[id(table)]

    def _judge(self, change: SpteChange, table: Table, replaced_leaf: bool, pid: int) -> None:
        """Would the kernel have counted this new table?"""
        thread = self._thread(pid)
        request = thread.request
        if request is None or not thread.request_fetch or request.level != 1:
            return
        if not table.covers(request.gfn) or not self._mitigated or self._logging:
            return
        fmt = self._fmt
        if replaced_leaf:
            # Write-protected for dirty logging: the slot is limited to 4 KiB pages.
            old = change.old
            if fmt.is_executable(old) or (fmt.is_mmu_writable(old) and not fmt.is_writable(old)):
                return
        else:
            pages = 1 << 9 * (change.level - 1)
            if change.level not in self._seen_levels or (request.gfn ^ request.pfn) & pages - 1:
                return
        self._count(table)

    def _unlinked(self, table: Table, pid: int, line: int) -> None:
        thread = self._thread(pid)
        if thread.zapping and self.count is not None and not (table.nx_once or table.partial):
            self.problems.append(
                (
                    line,
                    f"the recovery worker zaps the table of gfn {table.gfn:#x}, which was not "
                    "counted as an NX split",
                )
            )
        thread.zapping = False
        todo = [table]
        while todo:
            one = todo.pop()
            todo += one.children.values()
            if one.nx:
                self._uncount(one)

    def _account(self, record: Record) -> None:
        if not self._account_lines:
            self._account_lines = True
            for table in list(self._counted.values()):
                self._uncount(table)
        linked = self._thread(record.pid).linked
        if linked is None:
            self.problems.append((record.line, "NX accounting by a thread that linked no table"))
        elif not linked.nx:
            self._count(linked)

    def _unaccount(self, record: Record, reader: Trace) -> None:
        """Removals are counted elsewhere: here only a table that stays counts no more."""
        if isinstance(record.fields, Probe) and "gfn" in record.fields.arguments:
            gfn = probe_number(record, "gfn", reader)
            for table in [one for one in self._counted.values() if one.gfn == gfn]:
                self._uncount(table)
        elif "recover" in record.caller and self._counted:
            self._uncount(next(iter(self._counted.values())))
