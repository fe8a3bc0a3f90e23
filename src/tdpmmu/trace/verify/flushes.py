"""The discipline of flushes, and the harm it prevents, as far as a trace can tell.

In the model (:mod:`tdpmmu.properties.flush_owed`) a debt is an entry that some vCPU may still hold.
A trace does not say what TLBs hold, so here every entry that was taken away may be held.  A debt is
closed by a flush of everything, or of a range that meets it, by whatever thread.  Which zaps owe a
flush at all depends on the function that zaps (:mod:`tdpmmu.trace.verify.threads`).
"""

from __future__ import annotations

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.properties.rules import FLUSH_OWED, FREED_TABLE
from tdpmmu.trace.fields import SpteChange
from tdpmmu.trace.records import Record
from tdpmmu.trace.verify.findings import Findings
from tdpmmu.trace.verify.kinds import Kind
from tdpmmu.trace.verify.threads import COLLAPSE, FAULT, LEAFS, RECOVERY, TEARDOWN, UNKNOWN, Thread

RCU_HEAD = 0xA8
"""Offset of ``rcu_head`` in ``struct kvm_mmu_page``, as 6.1 and 6.12 are built."""

_SIZES = {1: "4K", 2: "2M", 3: "1G", 4: "512G", 5: "256T"}
_MOST_DEBTS = 4096


class Debt:
    """Gfns ``[start, end)`` of which something was taken away by ``record``.

    ``sure`` says that the zap does owe a flush: leaves of an invalid root do not.
    """

    __slots__ = ("closed", "end", "kvm", "record", "start", "sure", "what")

    def __init__(
        self, start: int, end: int, record: Record, what: str, kvm: int | None, sure: bool
    ) -> None:
        self.start = start
        self.end = end
        self.record = record
        self.what = what
        self.kvm = kvm
        self.sure = sure
        self.closed = False


class Flushes:
    """``zaps`` were judged, ``unknown`` not, for nobody said which function they were for.

    ``frees`` of tables were judged.  ``restless`` are zaps of threads that never show themselves
    without a lock.  ``invalidated``: roots were made invalid.
    """

    def __init__(self, fmt: SpteFormat, findings: Findings) -> None:
        self._nonpresent = fmt.nonpresent
        self._findings = findings
        self._open: list[Debt] = []
        self._tables: dict[int, Debt] = {}
        self._flushes_first = fmt.nonpresent != 0
        self.invalidated = False
        self.zaps = self.unknown = self.frees = self.unsure = self.restless = 0

    def taken(self, change: SpteChange, kind: Kind, record: Record, thread: Thread) -> None:
        """A change took something away (and is none of an entry of a table that is gone)."""
        context = thread.context
        if context == TEARDOWN:
            return
        if context == UNKNOWN:
            self.unknown += 1
            return
        level, leaf = change.level, kind.was_leaf
        start, end = change.gfn, change.gfn + (1 << 9 * (level - 1))
        self.zaps += 1
        # From 6.10 on tdp_mmu_zap_spte_atomic traces the zap after its flush.
        atomic = context in (FAULT, COLLAPSE) and change.new == self._nonpresent
        if atomic and self._flushes_first and any(_meets(f, start, end) for f in thread.flushed):
            return
        what = f"the {_SIZES[level]} {'translation' if leaf else 'table'} of gfn {start:#x}"
        sure = context != LEAFS or not self.invalidated
        debt = Debt(start, end, record, what, thread.kvm, sure)
        if context == RECOVERY and not leaf and thread.zap_sp is not None:
            self._tables[thread.zap_sp] = debt
        if not thread.rested:
            self.restless += 1
        if len(self._open) >= _MOST_DEBTS:
            if thread.debts:
                last = thread.debts[-1]
                last.start, last.end = min(last.start, start), max(last.end, end)
                return
            del self._open[0]
        self._open.append(debt)
        thread.debts.append(debt)

    def flushed(self, thread: Thread, kvm: int | None, start: int = 0, end: int = 0) -> None:
        """A remote flush of ``[start, end)``; of everything if that is empty."""
        thread.flushed.append((start, end))
        still = []
        for debt in self._open:
            other = kvm is not None and debt.kvm is not None and kvm != debt.kvm
            if other or not _meets((start, end), debt.start, debt.end):
                still.append(debt)
            else:
                debt.closed = True
        self._open = still

    def leafs_return(self, thread: Thread, owes: bool) -> None:
        """``tdp_mmu_zap_leafs`` says whether a flush is owed."""
        for debt in thread.debts:
            if not owes:
                debt.closed = True
            debt.sure = True
        self._forget(thread)

    def let_go(self, thread: Thread, record: Record) -> None:
        """A thread shows itself without a spinning lock: it does not hold ``mmu_lock``."""
        for debt in thread.debts:
            if debt.closed:
                continue
            if not debt.sure:
                self.unsure += 1
                continue
            self._findings.violated(
                FLUSH_OWED.name,
                f"{debt.what} was taken away, and mmu_lock let go, without a flush",
                (debt.record, record),
            )
        thread.debts = []

    def freed(self, head: int, record: Record) -> None:
        """``tdp_mmu_free_sp_rcu_callback``: nobody may walk the table any more."""
        debt = self._tables.pop(head - RCU_HEAD, None)
        if debt is None:
            return
        self.frees += 1
        if not debt.closed:
            self._findings.violated(
                FREED_TABLE.name,
                f"{debt.what} is freed without a flush since it was unlinked",
                (debt.record, record),
            )

    def forget_all(self) -> None:
        """Events were lost: whatever was owed may have been flushed, and freed."""
        for debt in self._open:
            debt.closed = True
        self._open = []
        self._tables.clear()

    def _forget(self, thread: Thread) -> None:
        thread.debts = [debt for debt in thread.debts if not debt.closed]
        self._open = [debt for debt in self._open if not debt.closed]


def _meets(flush: tuple[int, int], start: int, end: int) -> bool:
    """Whether a flushed range, (0, 0) for everything, has a gfn of ``[start, end)``."""
    return flush == (0, 0) or (flush[0] < end and start < flush[1])
