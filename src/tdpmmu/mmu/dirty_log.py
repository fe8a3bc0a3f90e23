"""The dirty bitmap, and the ioctls that switch it on, take and clear it (``kvm_main.c``, v6.12)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot
from tdpmmu.arch.table import ReadHeader
from tdpmmu.events.records import (
    DirtyLogChanged,
    DirtyLogReturned,
    DirtyLogTaken,
    EmulatedWrite,
    OutOfBounds,
    PageMarkedDirty,
)
from tdpmmu.machine.op import BOTH, NEITHER, Emit, Op, Read, Step
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.collapse import Collapse
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.tdp_iter import TdpIter

MANUAL_PROTECT, INITIALLY_SET = "manual-protect", "initially-set"
"""``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2``, and with ``KVM_DIRTY_LOG_INITIALLY_SET``."""


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
class TakeDirtyBits(Op):
    """``xchg``, or ``fetch_andnot``, of one word of a slot's bitmap: the gfns that were set."""

    cell: Cell
    as_id: int
    gfns: tuple[int, ...]

    def apply(self, step: Step, alternative: int) -> tuple[int, ...]:
        taken = tuple(gfn for gfn in self.gfns if gfn in step[self.cell])
        if taken:
            step[self.cell] = step[self.cell] - set(taken)
            step.emit(DirtyLogTaken(self.as_id, taken))
        return taken

    def describe(self) -> str:
        return f"take gfns {self.gfns[0]:#x}-{self.gfns[-1]:#x} out of the dirty bitmap"


@dataclass(frozen=True, slots=True)
class NewDirtyBitmap(Op):
    """A fresh bitmap for a slot that nobody logs yet."""

    cell: Cell
    slot: Memslot
    full: bool

    def apply(self, step: Step, alternative: int) -> None:
        slot = self.slot
        gfns = range(slot.base_gfn, slot.base_gfn + slot.npages)
        bitmap = step[self.cell] - set(gfns)
        if self.full:
            bitmap = bitmap | set(gfns)
            for gfn in gfns:
                step.emit(PageMarkedDirty(slot.as_id, gfn))
        if bitmap != step[self.cell]:
            step[self.cell] = bitmap

    def describe(self) -> str:
        return f"kvm_alloc_dirty_bitmap(gfn {self.slot.base_gfn:#x})"


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


class DirtyLog(Collapse):
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
        """``vmx_flush_pml_buffer``: at every exit what the CPU has logged goes on record."""
        logged = await TakePml(vcpu)
        if not logged:
            return
        root = await CurrentRoot(vcpu)
        header = await ReadHeader(self.kvm.hardware.page_by_number[root])
        for gfn in logged:
            slots = await Read(self.kvm.memslots[header.as_id])
            await self.mark_page_dirty_in_slot(slots.find(gfn), gfn)

    async def emulate_write(self, vcpu: VcpuCells, as_id: int, gfn: int) -> None:
        """``emulator_cmpxchg_emulated``: through the user's mapping, past all SPTEs."""
        await Emit(EmulatedWrite(vcpu.number, as_id, gfn))
        await self.mark_emulated_write(as_id, gfn)

    async def mark_emulated_write(self, as_id: int, gfn: int) -> None:
        """``kvm_vcpu_mark_page_dirty``."""
        slots = await Read(self.kvm.memslots[as_id])
        await self.mark_page_dirty_in_slot(slots.find(gfn), gfn)

    # --- what switches logging on and off, and arms it again -----------------------------------

    def initially_set(self) -> bool:
        """``kvm_dirty_log_manual_protect_and_init_set``: all pages begin as dirty."""
        return INITIALLY_SET in self.kvm.config.options

    def manual_protect(self) -> bool:
        """``kvm->manual_dirty_log_protect``: only ``KVM_CLEAR_DIRTY_LOG`` arms a page again."""
        return self.initially_set() or MANUAL_PROTECT in self.kvm.config.options

    async def logging_starts(self, slot: Memslot, pool: int) -> None:
        """``kvm_mmu_slot_apply_flags``, on; the flush comes last, outside of the lock."""
        if self.initially_set():
            return
        if self.splits_eagerly():
            await self.slot_split_huge_pages(slot, pool)
        if self.logs_by_cpu():
            await self.leaf_clear_dirty(slot)
            await self.remove_write_access(slot, 2)
        else:
            await self.remove_write_access(slot, 1)
        await self.flush_remote_tlbs()

    async def logging_ends(self, slot: Memslot) -> None:
        """``kvm_mmu_slot_apply_flags``, off."""
        await self.zap_collapsible_sptes(slot)

    async def arm_gfns(self, slot: Memslot, gfns: tuple[int, ...], pool: int) -> None:
        """``kvm_arch_mmu_enable_log_dirty_pt_masked``: gfns of one word; callers flush."""
        if self.initially_set():
            await self.protect_huge_pages(slot, gfns[0], gfns[-1], pool)
        await self.clear_dirty_masked(slot, gfns)

    async def protect_huge_pages(self, slot: Memslot, first: int, last: int, pool: int) -> None:
        """Nothing was protected as logging began: huge pages are split, or protected now."""
        if self.splits_eagerly():
            await self.split_huge_pages(slot, first, self.split_end(last), pool)
        await self.slot_gfn_write_protect(slot.as_id, first, 2)
        if self.crosses_huge_pages(first, last):
            await self.slot_gfn_write_protect(slot.as_id, last, 2)

    def split_end(self, last: int) -> int:
        """Where the range to split ends: after the last gfn."""
        return last + 1

    def crosses_huge_pages(self, first: int, last: int) -> bool:
        """``ALIGN(start << PAGE_SHIFT, PMD_SIZE) != ALIGN(end << PAGE_SHIFT, PMD_SIZE)``.

        ``ALIGN`` rounds up, so the first gfn of a huge page counts as one of the page before it.
        """
        pages = self.kvm.geometry.pages(2)
        return (first + pages - 1) // pages != (last + pages - 1) // pages

    # --- userspace ------------------------------------------------------------------------------

    async def set_dirty_logging(self, as_id: int, gfn: int, on: bool, pool: int) -> None:
        """``KVM_SET_USER_MEMORY_REGION`` with other flags."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        old = await Read(kvm.memslots[as_id])
        slot = old.find(gfn)
        if slot is not None and slot.log != on:
            changed = replace(slot, log=on)
            slots = tuple(changed if s == slot else s for s in old.slots)
            if on:
                await self.alloc_dirty_bitmap(changed)
            else:
                await Emit(DirtyLogChanged(as_id, slot.base_gfn, slot.npages, False))
            await self.swap_active_memslots(as_id, slots)
            if on:
                await self.logging_starts(changed, pool)
                await Emit(DirtyLogChanged(as_id, slot.base_gfn, slot.npages, True))
            else:
                await self.logging_ends(changed)
        await kvm.slots_lock.unlock()

    def use_dirty_bitmap(self) -> bool:
        """``kvm_use_dirty_bitmap``; else the ioctls that are about one refuse (``-ENXIO``)."""
        return True

    async def alloc_dirty_bitmap(self, slot: Memslot) -> None:
        """``kvm_alloc_dirty_bitmap``: all clear, or all set; none with rings."""
        if not self.use_dirty_bitmap():
            return
        await NewDirtyBitmap(self.kvm.dirty_bitmap[slot.as_id], slot, self.initially_set())

    def bits_per_long(self) -> int:
        """64, but never more than a huge page has gfns."""
        return min(64, self.kvm.geometry.pages(2))

    def words(
        self, slot: Memslot, gfns: tuple[int, ...]
    ) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Gfns by word of a slot's bitmap, those beyond its end left out."""
        bits = self.bits_per_long()
        indices = sorted({(gfn - slot.base_gfn) // bits for gfn in gfns})
        return tuple(
            (i, tuple(g for g in gfns if slot.covers(g) and (g - slot.base_gfn) // bits == i))
            for i in indices
        )

    def range_in_slot(self, slot: Memslot, gfns: tuple[int, ...]) -> bool:
        """Whether what userspace wants cleared is all in the slot; else ``-EINVAL``."""
        return all(slot.covers(gfn) for gfn in gfns)

    async def get_dirty_log(self, as_id: int, gfn: int, pool: int) -> None:
        """``kvm_get_dirty_log_protect``: take the bitmap, re-arm what it says, flush, return.

        With manual protect the bitmap is only looked at.
        """
        kvm = self.kvm
        await kvm.slots_lock.lock()
        slots = await Read(kvm.memslots[as_id])
        slot = slots.find(gfn)
        if slot is not None and slot.log and self.use_dirty_bitmap():
            if self.manual_protect():
                await Read(kvm.dirty_bitmap[as_id])
            else:
                every = tuple(range(slot.base_gfn, slot.base_gfn + slot.npages))
                await self.take_and_arm(slot, every, pool)
        await kvm.slots_lock.unlock()

    async def clear_dirty_log(self, as_id: int, gfns: tuple[int, ...], pool: int) -> None:
        """``kvm_clear_dirty_log_protect``: what userspace names and is set, is cleared."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        slots = await Read(kvm.memslots[as_id])
        slot = slots.find(gfns[0])
        logged = slot is not None and slot.log and self.use_dirty_bitmap()
        if logged and self.range_in_slot(slot, gfns):
            await self.take_and_arm(slot, gfns, pool)
        await kvm.slots_lock.unlock()

    async def take_and_arm(self, slot: Memslot, gfns: tuple[int, ...], pool: int) -> None:
        """Word by word: clear bits, and arm what they stood for.  The flush comes last."""
        kvm = self.kvm
        flush = False
        await kvm.mmu_lock.write_lock()
        length = -(-slot.npages // self.bits_per_long())
        for index, word in self.words(slot, gfns):
            if index >= length:
                await Emit(OutOfBounds("dirty_bitmap", index, length))
                continue
            taken = await TakeDirtyBits(kvm.dirty_bitmap[slot.as_id], slot.as_id, word)
            if taken:
                flush = True
                await self.arm_gfns(slot, taken, pool)
        await kvm.mmu_lock.write_unlock()
        if flush:
            await self.flush_remote_tlbs()
        await Emit(DirtyLogReturned(slot.as_id))
