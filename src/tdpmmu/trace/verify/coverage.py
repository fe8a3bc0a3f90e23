"""Which properties a trace allows to check: in full, in part, not at all; and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdpmmu.properties.rules import FLUSH_OWED, FREED_TABLE, LEAK, LEFTOVER, SPTE_TRANSITION
from tdpmmu.trace.verify.findings import NONE, PART, Checked
from tdpmmu.trace.verify.flushes import Flushes
from tdpmmu.trace.verify.huge import MEANING as HUGE_MEANING
from tdpmmu.trace.verify.huge import NX_HUGE_PAGE, HugeLeaves
from tdpmmu.trace.verify.pages import ACCOUNTING, ACCOUNTING_MEANING, Pages

_CHANGES = "event kvmmmu:kvm_tdp_mmu_spte_changed"
_PAGES = "event kvmmmu:kvm_mmu_get_page"
_FLUSHES = "probes of kvm_flush_remote_tlbs (kvm) and kvm_flush_remote_tlbs_range (gfn, nr_pages)"
_ZAP_SP = "probe of kvm_tdp_mmu_zap_sp (kvm, sp)"
_LEAFS = "probes of tdp_mmu_zap_leafs and its return"
_FREE = "probe of tdp_mmu_free_sp_rcu_callback (head)"
_UNMAP = "probes of kvm_tdp_mmu_unmap_gfn_range (start, end) and its return"
_SWITCH = "event sched:sched_switch"
_FUNCTIONS = "function tracing of kvm_tdp_mmu_*, tdp_mmu_* and __tdp_mmu_*"

FLUSH_ALL = frozenset({"kvm_flush_remote_tlbs", "kvm_arch_flush_remote_tlbs"})
FLUSH_RANGE = frozenset(
    {
        "kvm_flush_remote_tlbs_range",
        "kvm_flush_remote_tlbs_with_address",
        "kvm_arch_flush_remote_tlbs_range",
    }
)


@dataclass(slots=True)
class Facts:
    """What the trace has, and what happened in it.

    ``called`` are functions of which it tells, ``probed`` those whose arguments it has.  ``depth``:
    it says whether a thread holds a spinning lock.  ``flushes_first``: a kernel that traces atomic
    zaps after their flush, and freezing not at all.
    """

    changes: int = 0
    called: set[str] = field(default_factory=set)
    probed: set[str] = field(default_factory=set)
    lost: bool = False
    late: bool = False
    several: bool = False
    depth: bool = False
    flushes_first: bool = False
    ambiguous: int = 0
    zaps: int = 0
    unknown_zaps: int = 0
    unsure_zaps: int = 0
    restless_zaps: int = 0
    judged_frees: int = 0
    frees: int = 0
    waiting: int = 0
    exact: bool = True
    torn: int = 0
    unmaps: int = 0
    huge: int = 0

    def count(self, flushes: Flushes, pages: Pages, huge: HugeLeaves) -> None:
        """Take over what was counted."""
        self.zaps, self.unknown_zaps = flushes.zaps, flushes.unknown
        self.unsure_zaps, self.judged_frees = flushes.unsure, flushes.frees
        self.restless_zaps = flushes.restless
        self.frees, self.waiting = pages.frees, pages.waiting
        self.exact, self.torn, self.unmaps = pages.exact, pages.torn, pages.unmaps
        self.huge = huge.count


def checked(facts: Facts) -> list[Checked]:
    """Every property, with what the trace allowed to check of it."""
    found = [
        _transitions(facts),
        _huge(facts),
        _flush_owed(facts),
        _freed_table(facts),
        _accounting(facts),
        _leak(facts),
        _leftover(facts),
    ]
    for one in found:
        if facts.lost and one.coverage != NONE:
            one.lacks(PART, "events were lost")
    return found


def _transitions(facts: Facts) -> Checked:
    one = Checked(SPTE_TRANSITION.name, SPTE_TRANSITION.meaning, judged=facts.changes)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif facts.flushes_first:
        one.lacks(PART, "from 6.10 on the freezing of entries is traced for removed tables only")
    return one


def _huge(facts: Facts) -> Checked:
    one = Checked(NX_HUGE_PAGE, HUGE_MEANING, judged=facts.huge)
    if not facts.huge:
        one.lacks(NONE, "no huge leaf was installed", _CHANGES, "event kvmmmu:kvm_mmu_set_spte")
    return one


def _flush_owed(facts: Facts) -> Checked:
    one = Checked(FLUSH_OWED.name, FLUSH_OWED.meaning, judged=facts.zaps)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif not facts.called & FLUSH_ALL:
        one.lacks(NONE, "no flushes", _FLUSHES)
    elif not facts.depth:
        one.lacks(NONE, "the trace does not say when mmu_lock is let go (preempt depth)")
    elif not facts.zaps:
        one.lacks(NONE, "no zap of which the trace says what it was for", _ZAP_SP, _LEAFS)
    if one.coverage == NONE:
        return one
    if facts.unknown_zaps:
        what = f"{facts.unknown_zaps} zaps by functions of which the trace does not tell"
        one.lacks(PART, what, _FUNCTIONS, _LEAFS)
    if facts.unsure_zaps:
        what = f"{facts.unsure_zaps} zaps of leaves, maybe in roots that are invalid"
        one.lacks(PART, what, _LEAFS)
    if facts.restless_zaps:
        what = f"{facts.restless_zaps} zaps by threads that are never seen without mmu_lock"
        one.lacks(PART, what, _SWITCH)
    if facts.called & FLUSH_RANGE - facts.probed:
        one.lacks(PART, "flushes of a range of which the trace does not tell", _FLUSHES)
    return one


def _freed_table(facts: Facts) -> Checked:
    one = Checked(FREED_TABLE.name, FREED_TABLE.meaning, judged=facts.judged_frees)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif not facts.called & FLUSH_ALL:
        one.lacks(NONE, "no flushes", _FLUSHES)
    elif not facts.judged_frees:
        one.lacks(NONE, "no free of a table whose address is known", _ZAP_SP, _FREE)
    else:
        one.lacks(PART, "only tables that the recovery worker zaps are known by their address")
    return one


def _accounting(facts: Facts) -> Checked:
    one = Checked(ACCOUNTING, ACCOUNTING_MEANING, judged=facts.frees)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif not facts.frees:
        one.lacks(NONE, "no frees of tables", _FREE, _PAGES)
    elif not facts.exact:
        one.lacks(PART, "the trace does not show all tables from their birth on")
    elif facts.waiting > 0:
        one.lacks(PART, f"{facts.waiting} tables are not freed yet when the trace ends")
    return one


def _leak(facts: Facts) -> Checked:
    one = Checked(LEAK.name, LEAK.meaning, judged=facts.torn)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif not facts.torn:
        why = "no VM was torn down"
        if "kvm_tdp_mmu_zap_all" in facts.called:
            why = "the trace does not tell its VMs apart, or not all of their tables"
        one.lacks(NONE, why, _FUNCTIONS)
    return one


def _leftover(facts: Facts) -> Checked:
    one = Checked(LEFTOVER.name, LEFTOVER.meaning, judged=facts.unmaps)
    if not facts.changes:
        one.lacks(NONE, "no SPTE changes of the TDP MMU", _CHANGES)
    elif not facts.unmaps:
        one.lacks(NONE, "no range of gfns was unmapped that the trace tells of", _UNMAP)
    else:
        one.lacks(PART, "page tables only: the trace does not say what TLBs hold")
    return one
