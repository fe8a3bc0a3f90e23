"""The MMU as the replay runs it: what came from outside is looked up, what is traced is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot, TestAndClearReload
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.conformance.replay.calls import Armed, MmioMarked, PageGot, PageZap
from tdpmmu.conformance.replay.traced import (
    Changed,
    Fixed,
    Requested,
    Sets,
    Traced,
)
from tdpmmu.machine.op import Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.shadow_pages import Role
from tdpmmu.mmu.tdp_iter import TdpIter

if TYPE_CHECKING:
    from tdpmmu.mmu.lifetime import Lifetime as Base
else:
    Base = object


@dataclass(slots=True)
class FaultInput:
    """What a fault found outside KVM's MMU: the host's page, how it is mapped, whether writable.

    ``host_level`` None: as it was.  ``writable`` None: as the leaf says that is there, if there is
    one.  ``slot``: there is a memslot.
    """

    pfn: int = 0
    host_level: int | None = None
    writable: bool | None = True
    slot: bool = True
    reserved: bool = False


class Replayed(Base):
    """Mixed into a kernel's class, as a patch is."""

    inputs: dict[int, FaultInput]
    """By vCPU."""

    host_levels: dict[int, int]
    """The level of the host's mapping, by 2 MiB region."""

    host_split: set[int]
    """The regions that saw an unmap since a fault last asked for a huge page there."""

    prefetched: dict[int, int]
    """Frames by gfn that a prefetch finds."""

    writable_as_found: set[Fault]
    """Faults that did not say whether the host's page is writable."""

    log_initially_set = False

    # --- inputs ---------------------------------------------------------------------------------

    async def faultin_pfn(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``kvm_faultin_pfn``: the slot is the model's, the host page is the trace's."""
        given = self.inputs[vcpu.number]
        slots = await Read(self.kvm.memslots[fault.as_id])
        fault.generation = slots.generation
        fault.slot = slots.find(fault.gfn) if given.slot else None
        if fault.slot is None:
            return await self.handle_noslot_fault(vcpu, fault)
        fault.pfn = given.pfn
        if given.writable is None:
            self.writable_as_found.add(fault)
        else:
            fault.map_writable = given.writable
        if given.host_level is not None:
            self.host_levels[fault.gfn >> 9] = given.host_level
        return ""

    def find_writable(self, fault: Fault, spte: int, level: int) -> None:
        """A fault that has nothing to change finds the host's page as the leaf ``spte`` says."""
        fmt = self.kvm.format
        if fault in self.writable_as_found:
            self.writable_as_found.remove(fault)
            if fmt.is_shadow_present(spte) and fmt.is_last(spte, level):
                fault.map_writable = fmt.is_host_writable(spte)

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        self.find_writable(fault, it.old_spte, it.level)
        return await super().make_spte(fault, it)

    async def mmu_set_spte(self, fault: Fault, sptep: Cell, level: int, access: int) -> str:
        self.find_writable(fault, await ReadSpte(sptep), level)
        return await super().mmu_set_spte(fault, sptep, level, access)

    def host_pfn_mapping_level(self, slot: Memslot, gfn: int) -> int:
        """``host_pfn_mapping_level``: as the last fault there found the host's mapping."""
        return self.host_levels.get(gfn >> 9, 1)

    def reserved_bit_reported(self, vcpu: VcpuCells) -> bool:
        return self.inputs[vcpu.number].reserved

    def initially_set(self) -> bool:
        return self.log_initially_set

    def manual_protect(self) -> bool:
        """With manual protect ``KVM_GET_DIRTY_LOG`` arms nothing, and so is not seen at all."""
        return False

    def spte_generation(self, generation: int) -> int:
        """The kernel keeps the generation itself, which counts by two."""
        fmt = self.kvm.format
        bits = sum(high - low + 1 for low, high in (fmt.mmio_gen_low, fmt.mmio_gen_high))
        return 2 * generation % (1 << bits)

    async def gfn_to_page_many(self, slot: Memslot, gfn: int, pages: int) -> tuple[int, ...]:
        found: list[int] = []
        while len(found) < pages and gfn + len(found) in self.prefetched:
            found.append(self.prefetched[gfn + len(found)])
        return tuple(found)

    # --- what is compared -----------------------------------------------------------------------

    async def trace_spte_changed(self, sptep: Cell, old: int, new: int, level: int) -> None:
        page: TablePage = sptep.page
        header = await ReadHeader(page)
        index = self.kvm.hardware.entry_index[sptep.key]
        gfn = header.gfn + index * self.kvm.geometry.pages(header.level)
        await Traced(Changed(header.as_id, gfn, level, old, new, sptep))

    async def trace_fast_page_fault(self, fault: Fault, sptep: Cell, old: int, new: int) -> None:
        await Traced(Fixed(fault.gfn, old, new, sptep))

    async def hugepage_adjust(self, fault: Fault) -> None:
        await super().hugepage_adjust(fault)
        await Traced(Requested(fault.gfn, fault.pfn, fault.goal_level))

    async def map_target_level(self, fault: Fault, it: TdpIter) -> str:
        result = await super().map_target_level(fault, it)
        if fault.slot is None:
            spte = await ReadSpte(it.sptep)
            await Traced(MmioMarked(it.gfn, self.kvm.format.mmio_generation(spte)))
        return result

    async def mark_mmio_spte(self, as_id: int, sptep: Cell, gfn: int, access: int) -> None:
        await super().mark_mmio_spte(as_id, sptep, gfn, access)
        spte = await ReadSpte(sptep)
        await Traced(MmioMarked(gfn, self.kvm.format.mmio_generation(spte)))

    async def arm_gfns(self, slot: Memslot, gfns: tuple[int, ...], pool: int) -> None:
        await Traced(Armed(gfns))
        await super().arm_gfns(slot, gfns, pool)

    async def trace_set_spte(self, sptep: Cell, gfn: int, spte: int, level: int) -> None:
        await Traced(Sets(gfn, level, spte))

    async def find_shadow_page(
        self, vcpu: VcpuCells | None, gfn: int, role: Role
    ) -> TablePage | None:
        sp = await super().find_shadow_page(vcpu, gfn, role)
        if sp is not None:
            await Traced(PageGot(gfn, role.level, False))
        return sp

    async def alloc_shadow_page(self, pool: int, gfn: int, role: Role) -> TablePage:
        sp = await super().alloc_shadow_page(pool, gfn, role)
        await Traced(PageGot(gfn, role.level, True))
        return sp

    async def prepare_zap_page(self, sp: TablePage, invalid_list: InvalidList) -> int:
        header = await ReadHeader(sp)
        await Traced(PageZap(header.gfn, header.level))
        return await super().prepare_zap_page(sp, invalid_list)

    # --- calls ----------------------------------------------------------------------------------

    async def guest_loads(self, vcpu: VcpuCells, as_id: int) -> None:
        """``kvm_mmu_reload`` before a vCPU enters the guest."""
        root = await CurrentRoot(vcpu)
        if root < 0:
            await self.mmu_load(vcpu, as_id)
        elif await TestAndClearReload(vcpu):
            await self.reload_root(vcpu)

    async def guest_faults(
        self, vcpu: VcpuCells, gfn: int, access: Access, as_id: int, present: bool
    ) -> str:
        """A fault of a vCPU, which has loaded a root before it entered the guest."""
        await self.kvm.srcu.read_lock()
        await self.guest_loads(vcpu, as_id)
        result = await self.page_fault(vcpu, gfn, access, as_id, 0, present)
        await self.kvm.srcu.read_unlock()
        return result

    async def unmap_pages(self, start: int, end: int) -> None:
        """The host's ``invalidate_range_start`` and ``_end``, in host pages."""
        await self.invalidate_range_start(start, end)
        await self.host_splits(start, end)
        await self.invalidate_range_end(start, end)

    async def host_splits(self, start: int, end: int) -> None:
        """Nothing is left of a mapping, or if it was huge, small pages that lie like a huge one."""
        slots = await Read(self.kvm.memslots[0])
        for slot in slots.slots:
            first = max(start, slot.hva) - slot.hva + slot.base_gfn
            last = min(end, slot.hva + slot.npages) - slot.hva + slot.base_gfn - 1
            for region in range(first >> 9, (last >> 9) + 1 if first <= last else 0):
                self.host_levels[region] = 1
                # A split is told as an unmap of the whole region, too.
                self.host_split.add(region)

    async def release(self) -> None:
        """``kvm_mmu_notifier_release``, and the end of the VM."""
        kvm = self.kvm
        roots: list[TablePage] = []
        for vcpu in tuple(kvm.vcpus):
            number = await CurrentRoot(vcpu)
            if number >= 0:
                roots.append(kvm.hardware.page_by_number[number])
        await self.destroy(tuple(roots))


def replayed(kernel: type[Any]) -> type[Any]:
    """A kernel's class with the replay's hooks."""
    return type(f"Replayed_{kernel.__name__}", (Replayed, kernel), {"__module__": __name__})
