"""What is being mapped for whom."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.spte import Access
from tdpmmu.mmu.kvm import Memslot

RET_PF_RETRY, RET_PF_FIXED, RET_PF_SPURIOUS = "RET_PF_RETRY", "RET_PF_FIXED", "RET_PF_SPURIOUS"
RET_PF_EMULATE = "RET_PF_EMULATE"
"""The access is done by KVM or by userspace: no slot, a read-only one, or a write that is tracked.
"""

KVM_MAX_HUGEPAGE_LEVEL = 3
"""1 GiB pages."""


class Fault:
    """``struct kvm_page_fault``: what is being mapped for whom."""

    position_fields: ClassVar[tuple[str, ...]] = (
        "gfn",
        "pfn",
        "write",
        "execute",
        "slot",
        "generation",
        "map_writable",
        "present",
        "guest_mode",
        "wrprot",
        "root",
        "as_id",
        "pool",
        "max_level",
        "goal_level",
        "req_level",
        "huge_page_disallowed",
        "mmu_seq",
    )
    __slots__ = position_fields

    def __init__(self, gfn: int, access: Access, root: int, as_id: int, pool: int) -> None:
        self.gfn = gfn
        self.pfn = 0
        self.write = access is Access.WRITE
        self.execute = access is Access.EXEC
        self.slot: Memslot | None = None
        self.generation = 0
        self.map_writable = True
        self.wrprot = False
        self.present = False
        self.guest_mode = False
        self.root = root
        self.as_id = as_id
        self.pool = pool
        self.max_level = KVM_MAX_HUGEPAGE_LEVEL
        self.goal_level = 1
        self.req_level = 1
        self.huge_page_disallowed = False
        self.mmu_seq = 0
