"""KVM's walk of the guest's own page tables (``paging_tmpl.h``, v6.12)."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.guest import (
    ACC_ALL,
    ACC_EXEC,
    ACC_WRITE,
    DIRTY,
    PRESENT,
    GuestPaging,
    ReadGpte,
    ReadGptes,
    gpte_access,
    gpte_gfn,
    is_last_gpte,
)
from tdpmmu.arch.spte import Access
from tdpmmu.machine.op import Read
from tdpmmu.mmu.kvm import Kvm


class GuestWalker:
    """``struct guest_walker``: what a walk found, each list by level, the root's first."""

    position_fields: ClassVar[tuple[str, ...]] = (
        "level",
        "top",
        "table_gfn",
        "ptes",
        "prefetch_ptes",
        "pt_access",
        "pte_access",
        "gfn",
    )
    __slots__ = position_fields

    def __init__(self, paging: GuestPaging) -> None:
        self.top = self.level = paging.levels
        self.table_gfn: list[int] = [paging.root_gfn]
        self.ptes: list[int] = []
        self.prefetch_ptes: tuple[int, ...] = ()
        self.pt_access: list[int] = [ACC_ALL]
        self.pte_access = 0
        self.gfn = 0

    def table_at(self, level: int) -> int:
        """The gfn of the guest's table of that level."""
        return self.table_gfn[self.top - level]

    def access_of(self, level: int) -> int:
        """What the way to the table of that level allows."""
        return self.pt_access[self.top - level]


async def read_guest_atomic(kvm: Kvm, as_id: int, gfn: int, index: int) -> int | None:
    """``kvm_vcpu_read_guest_atomic`` of a table's entry: None without a valid slot at its gfn."""
    slots = await Read(kvm.memslots[as_id])
    slot = slots.find(gfn)
    if slot is None or slot.invalid:
        return None
    gpte: int = await ReadGpte(kvm.guest, gfn, index)
    return gpte


def protect_clean_gpte(access: int, gpte: int) -> int:
    """``protect_clean_gpte``: the first write has to set the guest's dirty bit."""
    return access if gpte & DIRTY else access & ~ACC_WRITE


async def walk_addr(
    kvm: Kvm, paging: GuestPaging, as_id: int, address: int, access: Access
) -> GuestWalker | None:
    """``walk_addr``: None: the guest's tables do not allow the access, or cannot be read."""
    walker = GuestWalker(paging)
    geometry = kvm.geometry
    granted = ACC_ALL
    while True:
        index = geometry.index(address, walker.level)
        gpte = await read_guest_atomic(kvm, as_id, walker.table_gfn[-1], index)
        if gpte is None or not gpte & PRESENT:
            return None
        walker.ptes.append(gpte)
        granted &= gpte_access(gpte)
        if is_last_gpte(gpte, walker.level):
            break
        walker.table_gfn.append(gpte_gfn(gpte))
        walker.pt_access.append(granted)
        walker.level -= 1
    if access is Access.WRITE and not granted & ACC_WRITE:
        return None
    if access is Access.EXEC and not granted & ACC_EXEC:
        return None
    walker.pte_access = granted if access is Access.WRITE else protect_clean_gpte(granted, gpte)
    walker.gfn = gpte_gfn(gpte) + address % geometry.pages(walker.level)
    return walker


async def gpte_changed(
    kvm: Kvm, walker: GuestWalker, as_id: int, address: int, level: int, together: int = 1
) -> bool:
    """``gpte_changed``: whether the entry of ``level`` is no longer what the walk read.

    Of a last-level table, ``together`` entries are read at once, and kept for the prefetch.
    """
    index = kvm.geometry.index(address, level)
    if level == 1 and together > 1:
        first = index // together * together
        slots = await Read(kvm.memslots[as_id])
        slot = slots.find(walker.table_at(level))
        if slot is None or slot.invalid:
            return True
        walker.prefetch_ptes = await ReadGptes(kvm.guest, walker.table_at(level), first, together)
        return bool(walker.prefetch_ptes[index - first] != walker.ptes[walker.top - level])
    gpte = await read_guest_atomic(kvm, as_id, walker.table_at(level), index)
    return bool(gpte != walker.ptes[walker.top - level])
