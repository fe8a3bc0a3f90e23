"""Page table pages: each that is unlinked is freed, once, and after that; none outlives its VM.

``kvm_mmu_get_page`` tells of a new page, an SPTE change of its link and its unlinking, and
``tdp_mmu_free_sp_rcu_callback`` of its free.  A page that lost the race for its place is freed at
once, without a trace, so pages got are no upper bound.  Only for those that the recovery worker
zaps is the address known (``zap_sp``); the others are counted.
"""

from __future__ import annotations

from typing import NamedTuple

from tdpmmu.properties.rules import LEAK, LEFTOVER
from tdpmmu.trace.records import Record
from tdpmmu.trace.verify.findings import Findings
from tdpmmu.trace.verify.flushes import RCU_HEAD
from tdpmmu.trace.verify.forest import Forest
from tdpmmu.trace.verify.nodes import leaf_within
from tdpmmu.trace.verify.threads import Thread

ACCOUNTING = "page-accounting"
ACCOUNTING_MEANING = "a page table is freed that is in use, or twice, or not at all"

_SIZES = ("4K", "2M", "1G")


class _Unlinked(NamedTuple):
    """``number``: how many tables had been unlinked before it."""

    record: Record
    number: int


class Pages:
    """``frees`` are counted by probe and by function line, of which a trace may have both.

    ``exact`` is False as soon as something may be missing; then only addresses are held against
    the rules.  ``torn`` counts the VMs whose end was checked, ``unmaps`` the ranges.
    """

    def __init__(self, forest: Forest, findings: Findings) -> None:
        self._forest = forest
        self._findings = findings
        self._waiting: dict[int, _Unlinked] = {}
        self._by_probe = self._by_function = self._excused = 0
        self.exact = True
        self.torn = self.unmaps = 0

    @property
    def frees(self) -> int:
        """Tables freed."""
        return max(self._by_probe, self._by_function)

    @property
    def waiting(self) -> int:
        """Tables unlinked, and roots that map nothing, without their free."""
        return self._gone() - self.frees

    def zapped(self, sp: int, record: Record) -> None:
        """The recovery worker has unlinked the table with this ``struct kvm_mmu_page``."""
        before = self._waiting.get(sp)
        if before is not None and self.exact and not self._missed():
            self._findings.violated(
                ACCOUNTING,
                f"the table of sp {sp:#x} is unlinked again without having been freed",
                (before.record, record),
            )
        self._waiting[sp] = _Unlinked(record, self._forest.unlinked)

    def freed(self, record: Record, head: int | None, complete: bool) -> None:
        """``tdp_mmu_free_sp_rcu_callback``; ``head`` is known from a probe only.

        ``complete``: all changes before it have been entered.
        """
        before = self.frees
        if head is None:
            self._by_function += 1
        else:
            self._by_probe += 1
            self._freed_before_others(head - RCU_HEAD, record)
        if complete and self.exact and self.frees > max(before, self._gone()):
            self._findings.violated(
                ACCOUNTING,
                f"a table is freed, the {self.frees}th, but only {self._gone()} were unlinked",
                (record,),
            )

    def _freed_before_others(self, sp: int, record: Record) -> None:
        """Callbacks of one CPU are called in the order of their ``call_rcu``."""
        freed = self._waiting.pop(sp, None)
        if freed is None:
            return
        for other, unlinked in list(self._waiting.items()):
            older = unlinked.number < freed.number and unlinked.record.cpu == freed.record.cpu
            if older:
                del self._waiting[other]
                if self.exact and not self._missed():
                    self._findings.violated(
                        ACCOUNTING,
                        f"the table of sp {other:#x} is not freed, but one unlinked later on the "
                        "same CPU is",
                        (unlinked.record, freed.record, record),
                    )

    def _missed(self) -> bool:
        """Whether a free may be one that no probe told of, though the function tracer did.

        The kernel leaves a kprobe out that hits while it handles another one on the same CPU.
        """
        if not self._by_probe or self._by_function - self._by_probe <= self._excused:
            return False
        self._excused += 1
        return True

    def torn_down(self, thread: Thread, record: Record) -> None:
        """``kvm_tdp_mmu_zap_all`` is over: nothing may be mapped."""
        begin = thread.torn
        thread.torn = None
        forest = self._forest
        roots = forest.roots_of(thread.kvm)
        if begin is None or not self.exact or roots is None:
            return
        self.torn += 1
        left = [f"{forest.pages[i + 1]} {name}" for i, name in enumerate(_SIZES)]
        left = [] if forest.several else [one for one in left if not one.startswith("0 ")]
        if not left and (leaf := leaf_within(forest.fmt, roots, 0, forest.end)) is not None:
            left = [f"gfn {leaf[0]:#x} at level {leaf[1]}"]
        if left:
            self._findings.violated(
                LEAK.name,
                f"the VM has been torn down, but {' and '.join(left)} still mapped",
                (begin, record),
            )

    def unmapped(self, thread: Thread, record: Record) -> None:
        """``kvm_tdp_mmu_unmap_gfn_range`` returns."""
        if thread.unmap is None:
            return
        begin, start, end = thread.unmap
        thread.unmap = None
        roots = self._forest.roots_of(thread.kvm)
        if not self.exact or roots is None or len({root.as_id for root in roots}) > 1:
            return
        self.unmaps += 1
        left = leaf_within(self._forest.fmt, roots, start, end)
        if left is not None:
            self._findings.violated(
                LEFTOVER.name,
                f"gfns {start:#x} to {end:#x} were unmapped, but gfn {left[0]:#x} is still mapped "
                f"at level {left[1]}",
                (begin, record),
            )

    def finish(self) -> None:
        """The trace is over: if as many tables were freed as unlinked, all of them were."""
        if self.exact and self._by_probe >= self._gone():
            for sp, unlinked in self._waiting.items():
                self._findings.violated(
                    ACCOUNTING,
                    f"the table of sp {sp:#x} is not freed after it was unlinked, though as many "
                    "tables were freed as unlinked",
                    (unlinked.record,),
                )

    def lost(self) -> None:
        """Something may be missing from here on."""
        self.exact = False
        self._waiting.clear()

    def _gone(self) -> int:
        forest = self._forest
        used = sum(1 for roots in forest.roots.values() for root in roots if root.children)
        return forest.unlinked + forest.roots_made - used
