"""Changing memslots (``kvm_set_memslot``, ``kvm_main.c``; ``kvm_mmu_zap_all_fast``, ``mmu.c``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdpmmu.events.records import MemslotCreated, MemslotGone
from tdpmmu.kernel.locks import SpinAcquire
from tdpmmu.machine.op import Emit, Op, Read, Step, Write
from tdpmmu.mmu.kvm import Kvm, Memslot, Memslots
from tdpmmu.mmu.notifier import Notifier


@dataclass(frozen=True, slots=True)
class WaitForInvalidations(Op):
    """Take ``mn_invalidate_lock`` when no mmu_notifier is between its start and its end."""

    kvm: Kvm

    def alternatives(self, step: Step) -> int:
        kvm = self.kvm
        if step[kvm.mn_active_invalidate_count]:
            return 0
        return SpinAcquire(kvm.mn_invalidate_lock).alternatives(step)

    def apply(self, step: Step, alternative: int) -> None:
        SpinAcquire(self.kvm.mn_invalidate_lock).apply(step, 0)

    def describe(self) -> str:
        return "wait until mn_active_invalidate_count is 0, with mn_invalidate_lock"


class MemslotUpdates(Notifier):
    """``KVM_SET_USER_MEMORY_REGION``: one at a time, under ``slots_lock``."""

    async def swap_active_memslots(self, as_id: int, slots: tuple[Memslot, ...]) -> None:
        """``install_new_memslots`` / ``kvm_swap_active_memslots``: publish, wait for readers."""
        kvm = self.kvm
        old = await Read(kvm.memslots[as_id])
        await self.block_invalidations()
        await Write(kvm.memslots[as_id], Memslots(old.generation + 1, slots))
        await self.unblock_invalidations()
        await kvm.srcu.synchronize()
        await self.memslots_updated(as_id, Memslots(old.generation + 2, slots))

    async def memslots_updated(self, as_id: int, slots: Memslots) -> None:
        """The new generation is published; ``kvm_arch_memslots_updated`` looks at it before."""
        await Write(self.kvm.memslots[as_id], slots)

    async def block_invalidations(self) -> None:
        """From 5.15: slots change only while no mmu_notifier is between start and end."""

    async def unblock_invalidations(self) -> None:
        """The counterpart."""

    async def invalidate_memslot(self, slot: Memslot) -> None:
        """``kvm_invalidate_memslot``: mark it, publish that, zap what was mapped through it."""
        kvm = self.kvm
        old = await Read(kvm.memslots[slot.as_id])
        marked = tuple(replace(s, invalid=True) if s == slot else s for s in old.slots)
        await self.swap_active_memslots(slot.as_id, marked)
        await self.flush_shadow_memslot(slot)
        await Emit(MemslotGone(slot.as_id, slot.base_gfn, slot.npages))

    async def delete_memslot(self, as_id: int, gfn: int) -> None:
        """Delete the slot that has ``gfn``."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        old = await Read(kvm.memslots[as_id])
        slot = old.find(gfn)
        if slot is not None:
            await self.invalidate_memslot(slot)
            left = tuple(s for s in old.slots if s != slot)
            await self.swap_active_memslots(as_id, left)
        await kvm.slots_lock.unlock()

    async def move_memslot(self, as_id: int, gfn: int, to: int) -> None:
        """Move the slot that has ``gfn`` to start at gfn ``to``; its host pages stay.

        Nothing is done (-EEXIST, -EINVAL) if another slot is there, or the VM's gfns end.
        """
        kvm = self.kvm
        await kvm.slots_lock.lock()
        old = await Read(kvm.memslots[as_id])
        slot = old.find(gfn)
        moved = None if slot is None else replace(slot, base_gfn=to)
        if slot is not None and moved is not None and self.fits(old, moved, slot):
            await self.invalidate_memslot(slot)
            slots = tuple(moved if s == slot else s for s in old.slots)
            await self.swap_active_memslots(as_id, slots)
        await kvm.slots_lock.unlock()

    async def create_memslot(self, slot: Memslot) -> None:
        """Add a slot; nothing is done (-EEXIST) if another is there."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        old = await Read(kvm.memslots[slot.as_id])
        if self.fits(old, slot):
            await self.swap_active_memslots(slot.as_id, (*old.slots, slot))
            await Emit(MemslotCreated(slot.as_id, slot.base_gfn, slot.npages))
        await kvm.slots_lock.unlock()

    def fits(self, slots: Memslots, new: Memslot, old: Memslot | None = None) -> bool:
        """Whether ``new`` can be added, or take the place of ``old``."""
        return new.end <= self.kvm.geometry.max_gfn and not slots.overlap(new, old)

    async def flush_shadow_memslot(self, slot: Memslot) -> None:
        """``kvm_arch_flush_shadow_memslot``."""
        await self.zap_all_fast()

    async def zap_all_fast(self) -> None:
        """``kvm_mmu_zap_all_fast``; in 5.12 the TDP MMU zaps all SPTEs, its roots live on."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await self.reload_remote_mmus()
        await self.zap_obsolete_pages()
        await self.tdp_mmu_zap_all()
        await kvm.mmu_lock.write_unlock()

    async def zap_all_under_slots_lock(self) -> None:
        """Whoever else calls ``kvm_mmu_zap_all_fast`` holds ``slots_lock``, too."""
        await self.kvm.slots_lock.lock()
        await self.zap_all_fast()
        await self.kvm.slots_lock.unlock()

    async def zap_gfn_range_all(self, start: int, end: int) -> None:
        """``kvm_zap_gfn_range`` (MTRRs, APICv): in 5.12 the TDP MMU's walk may yield."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        flush = await self.unmap_rmap(start, end)
        zapped = await self.tdp_mmu_zap_gfn_range(start, end)
        if flush or zapped:
            await self.flush_remote_tlbs()
        await kvm.mmu_lock.write_unlock()
