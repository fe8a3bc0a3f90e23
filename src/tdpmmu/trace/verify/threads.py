"""What each thread of a trace is about: the kernel function it is in, and what it still owes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdpmmu.trace.records import Record, Row

if TYPE_CHECKING:
    from tdpmmu.trace.verify.flushes import Debt
    from tdpmmu.trace.verify.nodes import Node, Root

UNKNOWN, RECOVERY, LEAFS, FAULT, COLLAPSE, TEARDOWN = range(6)
"""What a thread changes SPTEs for.

``RECOVERY``: the NX worker zaps a table.  ``LEAFS``: ``tdp_mmu_zap_leafs``, for the mmu_notifier or
a memslot.  ``FAULT``: ``kvm_tdp_mmu_map``.  ``COLLAPSE``: small pages make room for huge ones when
dirty logging ends.  ``TEARDOWN``: whole roots go, which nobody can use any more.
"""

CONTEXTS = {
    "kvm_tdp_mmu_zap_sp": RECOVERY,
    "kvm_tdp_mmu_zap_possible_nx_huge_page": RECOVERY,
    "tdp_mmu_zap_leafs": LEAFS,
    "kvm_tdp_mmu_map": FAULT,
    "kvm_tdp_mmu_zap_collapsible_sptes": COLLAPSE,
    "tdp_mmu_zap_root": TEARDOWN,
    "__tdp_mmu_zap_root": TEARDOWN,
    "tdp_mmu_zap_root_work": TEARDOWN,
    "kvm_tdp_mmu_zap_all": TEARDOWN,
    "kvm_tdp_mmu_zap_invalidated_roots": TEARDOWN,
    "kvm_tdp_mmu_try_split_huge_pages": UNKNOWN,
    "kvm_tdp_mmu_wrprot_slot": UNKNOWN,
    "kvm_tdp_mmu_clear_dirty_slot": UNKNOWN,
    "kvm_tdp_mmu_clear_dirty_pt_masked": UNKNOWN,
    "kvm_tdp_mmu_write_protect_gfn": UNKNOWN,
    "kvm_tdp_mmu_age_gfn_range": UNKNOWN,
    "kvm_tdp_mmu_set_spte_gfn": UNKNOWN,
}
"""The functions that say it, by function tracer or probe."""


class Thread:
    """One thread of the trace.

    ``kvm`` is the pointer to its VM, once a probe has told.  ``roots`` are those it used last, by
    address space.  ``removed`` are the tables whose entries ``handle_removed_pt`` is reporting.
    ``flushed`` are the ranges it has flushed since its last change, of which ``(0, 0)`` stands for
    everything.  ``zap_sp`` is the ``sp`` that it is about to zap, ``unmap`` the range of gfns that
    it unmaps, ``torn`` the beginning of the VM's end.  ``rested``: it was seen without a spinning
    lock since the trace began.  ``held`` are rows that wait for events of other CPUs.
    """

    __slots__ = (
        "context",
        "debts",
        "flushed",
        "held",
        "kvm",
        "removed",
        "rested",
        "roots",
        "torn",
        "unmap",
        "zap_sp",
    )

    def __init__(self) -> None:
        self.context = UNKNOWN
        self.kvm: int | None = None
        self.roots: dict[int, Root] = {}
        self.removed: list[Node] = []
        self.rested = False
        self.debts: list[Debt] = []
        self.flushed: list[tuple[int, int]] = []
        self.zap_sp: int | None = None
        self.unmap: tuple[Record, int, int] | None = None
        self.torn: Record | None = None
        self.held: list[Row] = []
