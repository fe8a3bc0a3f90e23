"""MMIO SPTEs and their generations (``mmu.c``, ``x86.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import ReadSpte, WriteSpte
from tdpmmu.events.records import MmioEmulated
from tdpmmu.machine.op import Emit, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.attributes import Attributes
from tdpmmu.mmu.fault import RET_PF_EMULATE, Fault
from tdpmmu.mmu.kvm import Memslots
from tdpmmu.mmu.tdp_iter import TdpIter


class Mmio(Attributes):
    """A gfn without a slot gets an SPTE that says so, for one generation of the memslots.

    A generation in an SPTE has ``GENERATION_BITS`` bits here, 18 or 19 in the kernel.
    """

    GENERATION_BITS = 1

    def spte_generation(self, generation: int) -> int:
        """What an MMIO SPTE keeps of a generation."""
        return generation % (1 << self.GENERATION_BITS)

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        """``make_mmio_spte`` with the generation at that moment."""
        if fault.slot is None:
            slots = await Read(self.kvm.memslots[fault.as_id])
            return self.kvm.format.mmio(it.gfn, self.spte_generation(slots.generation // 2))
        return await super().make_spte(fault, it)

    async def mark_mmio_spte(self, as_id: int, sptep: Cell, gfn: int, access: int) -> None:
        """``mark_mmio_spte`` of the shadow MMU: no memslot, as of this generation."""
        slots = await Read(self.kvm.memslots[as_id])
        generation = self.spte_generation(slots.generation // 2)
        await WriteSpte(sptep, self.kvm.format.mmio(gfn, generation, access))

    async def fast_page_fault(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``handle_mmio_page_fault`` comes first: an MMIO SPTE of this generation is believed."""
        if self.reserved_bit_reported(vcpu) and await self.mmio_spte_says_so(fault):
            return RET_PF_EMULATE
        return await super().fast_page_fault(vcpu, fault)

    def looks_for_mmio(self) -> bool:
        """Hardware reports a reserved bit; here only VMs with MMIO look."""
        return MMIO in self.kvm.config.options

    def reserved_bit_reported(self, vcpu: VcpuCells) -> bool:
        """``PFERR_RSVD_MASK`` of the fault's error code, as if hardware had just looked."""
        return self.looks_for_mmio()

    async def mmio_spte_says_so(self, fault: Fault) -> bool:
        """``check_mmio_spte``."""
        kvm = self.kvm
        await kvm.rcu.read_lock()
        found = False
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            spte = await ReadSpte(it.sptep)
            if kvm.format.is_mmio(spte):
                slots = await Read(kvm.memslots[fault.as_id])
                found = self.generation_is_current(spte, slots)
                break
        await kvm.rcu.read_unlock()
        return found

    def generation_is_current(self, spte: int, slots: Memslots) -> bool:
        """``check_mmio_spte``: never while an update is in progress (odd generations)."""
        if slots.generation % 2:
            return False
        current = self.spte_generation(slots.generation // 2)
        return self.kvm.format.mmio_generation(spte) == current

    async def emulate(self, vcpu: VcpuCells, as_id: int, gfn: int, access: Access) -> None:
        """``x86_emulate_instruction``: KVM or userspace does the access for the guest."""
        if self.looks_for_mmio():
            await Emit(MmioEmulated(vcpu.number, as_id, gfn))

    async def memslots_updated(self, as_id: int, slots: Memslots) -> None:
        """``kvm_mmu_invalidate_mmio_sptes``: on a wrap all MMIO SPTEs go, then it is published."""
        if self.wraps(slots):
            await self.zap_all_fast()
        await Write(self.kvm.memslots[as_id], slots)

    def wraps(self, slots: Memslots) -> bool:
        """Whether the SPTEs' generation starts again from 0."""
        return self.looks_for_mmio() and self.spte_generation(slots.generation // 2) == 0


MMIO = "mmio"
"""The VM has gfns without a slot, and its vCPUs look for MMIO SPTEs."""
