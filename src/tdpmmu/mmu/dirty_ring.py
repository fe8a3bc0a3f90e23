"""The dirty ring: pushing, harvesting and resetting (``dirty_ring.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.events.records import DirtyRingReset
from tdpmmu.machine.op import Emit, Read
from tdpmmu.mmu.dirty_log import DirtyLog
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.ring import U64, ForgeEntry, HarvestEntry, PushDirty, Ring, SoftFull, TakeHarvested

Ticket = tuple[int, int]


class DirtyRing(DirtyLog):
    """A VM with rings has no bitmaps."""

    def use_dirty_bitmap(self) -> bool:
        return not self.kvm.dirty_rings

    async def mark_page_dirty_in_slot(self, slot: Memslot | None, gfn: int) -> None:
        """``mark_page_dirty_in_slot``, with rings."""
        if self.use_dirty_bitmap():
            await super().mark_page_dirty_in_slot(slot, gfn)
        elif slot is not None and slot.log:
            await PushDirty(self.kvm.dirty_rings, (slot.as_id, slot.base_gfn), gfn)

    # --- a vCPU ---------------------------------------------------------------------------------

    async def dirty_ring_exit(self, vcpu: VcpuCells) -> bool:
        """``kvm_dirty_ring_check_request``: true: the vCPU has been in userspace to empty its ring.

        The request is set whenever the ring is soft full, and looked at together with that, so it
        says nothing more.
        """
        ring = self.kvm.dirty_rings[vcpu.number]
        if not await SoftFull(ring):
            return False
        await self.kvm.srcu.read_unlock()
        await self.harvest(ring)
        await self.reset_dirty_rings(vcpu.pool)
        await self.kvm.srcu.read_lock()
        return True

    async def emulate_atomic(self, vcpu: VcpuCells, as_id: int, gfn: int) -> None:
        """An instruction that KVM emulates after an exit; what comes before is not of interest."""
        while self.kvm.dirty_rings and await self.dirty_ring_exit(vcpu):
            pass
        await self.emulate_write(vcpu, as_id, gfn)

    # --- userspace ------------------------------------------------------------------------------

    async def harvest(self, ring: Ring) -> None:
        """What userspace finds dirty in one ring, in order."""
        while await HarvestEntry(ring):
            pass

    async def harvest_all(self) -> None:
        """What userspace finds dirty."""
        for ring in self.kvm.dirty_rings:
            await self.harvest(ring)

    async def forge_entry(self, number: int, index: int, offset: int) -> None:
        """The rings are userspace's to write, at any time."""
        await ForgeEntry(self.kvm.dirty_rings[number], index, offset)

    async def reset_dirty_rings(self, pool: int) -> None:
        """``KVM_RESET_DIRTY_RINGS``: arm what was harvested, then flush."""
        await self.kvm.slots_lock.lock()
        tickets: tuple[Ticket, ...] = ()
        for ring in self.kvm.dirty_rings:
            done = await self.reset_dirty_ring(ring, pool)
            tickets = (*tickets, *done)
        await self.kvm.slots_lock.unlock()
        if tickets:
            await self.flush_remote_tlbs()
            await Emit(DirtyRingReset(tickets))

    async def reset_dirty_ring(self, ring: Ring, pool: int) -> tuple[Ticket, ...]:
        """``kvm_dirty_ring_reset``: entries near each other are armed in one go, as a mask."""
        tickets: tuple[Ticket, ...] = ()
        slot, offset, mask = (0, 0), 0, 0
        while True:
            taken = await TakeHarvested(ring)
            if taken is None:
                break
            tickets = (*tickets, taken[2])
            if mask and taken[0] == slot:
                merged = self.coalesce(offset, mask, taken[1])
                if merged is not None:
                    offset, mask = merged
                    continue
            await self.reset_dirty_gfn(slot, offset, mask, pool)
            slot, offset, mask = taken[0], taken[1], 1
        await self.reset_dirty_gfn(slot, offset, mask, pool)
        return tickets

    def coalesce(self, offset: int, mask: int, entry: int) -> tuple[int, int] | None:
        """Whether another entry fits the mask, forwards or backwards: the new offset and mask."""
        bits = self.bits_per_long()
        delta = (entry - offset + U64 // 2) % U64 - U64 // 2
        if 0 <= delta < bits:
            return offset, mask | 1 << delta
        if -bits < delta < 0 and mask << -delta < 1 << bits:
            return entry, mask << -delta | 1
        return None

    async def reset_dirty_gfn(
        self, slot_id: tuple[int, int], offset: int, mask: int, pool: int
    ) -> None:
        """``kvm_reset_dirty_gfn``: slot and offset are userspace's word, and must be in bounds."""
        if not mask:
            return
        kvm = self.kvm
        as_id, base = slot_id
        slots = await Read(kvm.memslots[as_id])
        slot = next((s for s in slots.slots if s.base_gfn == base), None)
        if slot is None or not self.offsets_in_slot(slot, offset, mask.bit_length() - 1):
            return
        gfns = tuple(
            base + (offset + bit + U64 // 2) % U64 - U64 // 2
            for bit in range(mask.bit_length())
            if mask >> bit & 1
        )
        await kvm.mmu_lock.write_lock()
        await self.arm_gfns(slot, gfns, pool)
        await kvm.mmu_lock.write_unlock()

    def offsets_in_slot(self, slot: Memslot, offset: int, last: int) -> bool:
        """Both ends of the mask: the sum of offset and ``last`` is one of 64 bits."""
        return offset < slot.npages and (offset + last) % U64 < slot.npages
