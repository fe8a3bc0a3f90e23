"""Dirty logging by write protection and by dirty bits (``mmu.c``, ``kvm_main.c``, v6.12)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.events.records import (
    DirtyLogChanged,
    DirtyLogReturned,
    DirtyLogTaken,
    EmulatedWrite,
    PageMarkedDirty,
)
from tdpmmu.machine.op import BOTH, NEITHER, Emit, Op, Read, Step, Xchg
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.write_track import WriteTrack

PML = "pml"
"""The CPU logs what it makes dirty (VMX page-modification logging)."""


@dataclass(frozen=True, slots=True)
class SetDirtyBit(Op):
    """``set_bit_le`` in a slot's bitmap."""

    cell: Cell
    as_id: int
    gfn: int

    def apply(self, step: Step, alternative: int) -> None:
        step[self.cell] = step[self.cell] | {self.gfn}
        step.emit(PageMarkedDirty(self.as_id, self.gfn))

    def describe(self) -> str:
        return f"mark_page_dirty_in_slot(gfn {self.gfn:#x})"


@dataclass(frozen=True, slots=True)
class TakePml(Op):
    """Empty a vCPU's page-modification log."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> tuple[int, ...]:
        logged = tuple(sorted(step[self.vcpu.pml]))
        if logged:
            step[self.vcpu.pml] = frozenset()
        return logged

    def mover(self, step: Step) -> str:
        return NEITHER if step[self.vcpu.pml] else BOTH

    def describe(self) -> str:
        return "vmx_flush_pml_buffer()"


class DirtyLog(WriteTrack):
    """A write to a slot that is logged leaves a trace before userspace can miss it."""

    async def mark_page_dirty_in_slot(self, slot: Memslot | None, gfn: int) -> None:
        """``mark_page_dirty_in_slot``."""
        if slot is not None and slot.log:
            await SetDirtyBit(self.kvm.dirty_bitmap[slot.as_id], slot.as_id, gfn)

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        """The end of ``make_spte``: whoever makes a page writable logs it as dirty."""
        spte = await super().make_spte(fault, it)
        if self.kvm.format.is_writable(spte):
            await self.mark_page_dirty_in_slot(fault.slot, it.gfn)
        return spte

    async def flush_pml_buffer(self, vcpu: VcpuCells) -> None:
        """``vmx_flush_pml_buffer``: at every exit what the CPU has logged goes to the bitmap."""
        logged = await TakePml(vcpu)
        for gfn in logged:
            slots = await Read(self.kvm.memslots[0])
            await self.mark_page_dirty_in_slot(slots.find(gfn), gfn)

    async def emulate_write(self, vcpu: VcpuCells, as_id: int, gfn: int) -> None:
        """``emulator_cmpxchg_emulated``: through the user's mapping, past all SPTEs."""
        await Emit(EmulatedWrite(vcpu.number, as_id, gfn))
        await self.mark_emulated_write(as_id, gfn)

    async def mark_emulated_write(self, as_id: int, gfn: int) -> None:
        """``kvm_vcpu_mark_page_dirty``."""
        slots = await Read(self.kvm.memslots[as_id])
        await self.mark_page_dirty_in_slot(slots.find(gfn), gfn)

    # --- taking write access, or dirty bits, away -----------------------------------------------

    async def need_write_protect(self, root: TablePage) -> bool:
        """``tdp_mmu_need_write_protect``: no log by the CPU, or none while it runs L2."""
        if PML not in self.kvm.config.options:
            return True
        header = await ReadHeader(root)
        return bool(header.guest_mode)

    async def log_bits(self, root: TablePage) -> int:
        """The bits whose absence makes the next write leave a trace."""
        wrprot = await self.need_write_protect(root)
        return self.kvm.format.writable if wrprot else self.kvm.format.dirty

    async def clear_gfns(self, start: int, end: int, gfns: tuple[int, ...] | None) -> None:
        """Clear those bits in the leaves of a range, or of some gfns in it, in every valid root."""
        for root in await Read(self.kvm.tdp_mmu_roots):
            if await Read(root.invalid):
                continue
            bits = await self.log_bits(root)
            await self.clear_bits_in(root, start, end, gfns, bits)

    async def clear_bits_in(
        self, root: TablePage, start: int, end: int, gfns: tuple[int, ...] | None, bits: int
    ) -> None:
        """``wrprot_gfn_range`` / ``clear_dirty_gfn_range`` / ``clear_dirty_pt_masked``."""
        kvm = self.kvm
        spte = kvm.format
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            if not spte.is_shadow_present(it.old_spte) or not spte.is_last(it.old_spte, it.level):
                continue
            if gfns is not None and it.gfn not in gfns:
                continue
            # A huge page is write-protected whatever the mode: it has to be split first.
            mask = spte.writable if it.level > 1 else bits
            if it.old_spte & mask:
                await self.clear_spte_bits(it, mask)
        await kvm.rcu.read_unlock()

    # --- userspace ------------------------------------------------------------------------------

    async def set_dirty_logging(self, as_id: int, gfn: int, on: bool) -> None:
        """``KVM_SET_USER_MEMORY_REGION`` with other flags; ``kvm_mmu_slot_apply_flags``."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        old = await Read(kvm.memslots[as_id])
        slot = old.find(gfn)
        if slot is not None and slot.log != on:
            changed = replace(slot, log=on)
            slots = tuple(changed if s == slot else s for s in old.slots)
            if not on:
                await Emit(DirtyLogChanged(as_id, slot.base_gfn, slot.npages, False))
            await self.swap_active_memslots(as_id, slots)
            if on:
                await self.start_logging(changed)
                await Emit(DirtyLogChanged(as_id, slot.base_gfn, slot.npages, True))
            else:
                await self.zap_collapsible_sptes(changed)
        await kvm.slots_lock.unlock()

    async def start_logging(self, slot: Memslot) -> None:
        """``kvm_mmu_slot_remove_write_access`` / ``..._leaf_clear_dirty``; the flush comes last."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await self.clear_gfns(slot.base_gfn, slot.base_gfn + slot.npages, None)
        await kvm.mmu_lock.write_unlock()
        await self.flush_remote_tlbs()

    async def get_dirty_log(self, as_id: int, gfn: int) -> None:
        """``kvm_get_dirty_log_protect``: take the bitmap, re-arm what it says, flush, return."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        slots = await Read(kvm.memslots[as_id])
        slot = slots.find(gfn)
        if slot is not None:
            await kvm.mmu_lock.write_lock()
            bitmap = await Xchg(kvm.dirty_bitmap[as_id], frozenset())
            taken = tuple(sorted(bitmap))
            await Emit(DirtyLogTaken(as_id, taken))
            if taken:
                await self.clear_gfns(slot.base_gfn, slot.base_gfn + slot.npages, taken)
            await kvm.mmu_lock.write_unlock()
            if taken:
                await self.flush_remote_tlbs()
            await Emit(DirtyLogReturned(as_id))
        await kvm.slots_lock.unlock()

    async def zap_collapsible_sptes(self, slot: Memslot) -> None:
        """``kvm_mmu_zap_collapsible_sptes``: tables where huge pages are possible again."""
        kvm = self.kvm
        await kvm.mmu_lock.read_lock()
        for root in await Read(kvm.tdp_mmu_roots):
            if not await Read(root.invalid):
                await self.zap_collapsible_spte_range(root, slot)
        await kvm.mmu_lock.read_unlock()

    async def zap_collapsible_spte_range(self, root: TablePage, slot: Memslot) -> None:
        """``zap_collapsible_spte_range``: under the read lock, freeze, flush, clear."""
        kvm = self.kvm
        spte = kvm.format
        end = slot.base_gfn + slot.npages
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, slot.base_gfn, end, min_level=2)
        while await it.next_pte():
            while True:
                if await self.iter_cond_resched(it, False, True):
                    break
                if not spte.is_shadow_present(it.old_spte) or spte.is_last(it.old_spte, it.level):
                    break
                if it.level > kvm.config.huge_level or not self.inside(slot, it):
                    break
                if await self.zap_spte_atomic(it):
                    break
                it.old_spte = await self.reread(it)
        await kvm.rcu.read_unlock()

    def inside(self, slot: Memslot, it: TdpIter) -> bool:
        """Whether a huge page at ``it`` would lie in the slot."""
        last = it.gfn + self.kvm.geometry.pages(it.level) - 1
        return slot.covers(it.gfn) and slot.covers(last)
