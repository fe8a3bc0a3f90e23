"""A kernel's class as the simulator runs it: what it asks of the host is looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdpmmu.arch.requests import NeedsIpi, SendIpi
from tdpmmu.events.records import DirtyLogReturned
from tdpmmu.machine.op import Emit, Op, Read, Step
from tdpmmu.mmu.dirty_log import TakeDirtyBits
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.simulation.dirty import CopyDirtyLog, DirtyWords, FindDirty
from tdpmmu.simulation.guest import MODES, Knobs
from tdpmmu.simulation.hostpages import HostPages
from tdpmmu.simulation.regions import REGION
from tdpmmu.worlds.simulate.ops import Spend

if TYPE_CHECKING:
    from tdpmmu.mmu.lifetime import Lifetime as Base
else:
    Base = object


@dataclass(frozen=True, slots=True)
class HostChange(Op):
    """The host changes its page tables, which are no cells: nobody looks at them without asking."""

    change: Callable[..., None]
    arguments: tuple[int, ...]

    def apply(self, step: Step, alternative: int) -> None:
        self.change(*self.arguments)


class Simulated(Base):
    """Mixed into a kernel's class, as a patch is."""

    knobs: Knobs
    host_pages: HostPages
    collapse_ns: int
    """What it takes khugepaged to copy 2 MiB."""

    def host_pfn_mapping_level(self, slot: Memslot, gfn: int) -> int:
        """``host_pfn_mapping_level``."""
        return self.host_pages.level(gfn)

    def splits_eagerly(self) -> bool:
        return self.knobs.eager_split and super().splits_eagerly()

    def initially_set(self) -> bool:
        return self.knobs.dirty_log == MODES[2]

    def manual_protect(self) -> bool:
        return self.knobs.dirty_log != MODES[0]

    def logs_by_cpu(self) -> bool:
        return self.knobs.pml

    # --- the dirty log --------------------------------------------------------------------------

    def range_in_slot(self, slot: Memslot, gfns: Any) -> bool:
        return slot.covers(int(gfns[0])) and slot.covers(int(gfns[-1]))

    async def get_dirty_log(self, as_id: int, gfn: int, pool: int) -> None:
        """``kvm_get_dirty_log_protect``; with manual protect all that it says is cleared next."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        if self.logs_by_cpu():
            await self.flush_pml_buffers()
        slots = await Read(kvm.memslots[as_id])
        slot = slots.find(gfn)
        seen: Any = ()
        if slot is not None and slot.log:
            if self.manual_protect():
                seen = await CopyDirtyLog()
            else:
                await self.take_and_arm(slot, range(slot.base_gfn, slot.npages), pool)
        await kvm.slots_lock.unlock()
        if len(seen):
            await self.clear_dirty_log(as_id, seen, pool)

    async def flush_pml_buffers(self) -> None:
        """``kvm_flush_pml_buffers``: who leaves the guest empties its log; nobody waits for it."""
        for vcpu in self.kvm.vcpus:
            if await NeedsIpi(self.kvm.hardware, vcpu):
                await SendIpi(vcpu)

    async def take_and_arm(self, slot: Memslot, gfns: Any, pool: int) -> None:
        """Word by word, as the kernel does it; words without a bit are only looked at."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        words = await FindDirty(gfns)
        await self.arm_words(slot, words, pool)
        await kvm.mmu_lock.write_unlock()
        if words:
            await self.flush_remote_tlbs()
        await Emit(DirtyLogReturned(slot.as_id))

    async def arm_words(self, slot: Memslot, words: DirtyWords, pool: int) -> None:
        """Words with bits set, one after the other."""
        for at in range(len(words)):
            await self.arm_word(slot, words.word(at), pool)

    async def arm_word(self, slot: Memslot, word: tuple[int, ...], pool: int) -> None:
        """One of them: clear its bits, and arm what they stood for."""
        taken = await TakeDirtyBits(self.kvm.dirty_bitmap[slot.as_id], slot.as_id, word)
        await self.arm_gfns(slot, taken, pool)

    # --- the host -------------------------------------------------------------------------------

    async def host_takes_range(self, gfn: int, pages: int) -> None:
        """The host takes pages away, block by block, inside one invalidation."""
        await self.invalidate_range_start(gfn, gfn + pages)
        block = self.kvm.memory.block
        last = min(gfn + pages, self.kvm.memory.pages)
        for first in range(gfn // block * block, last, block):
            await self.host_unmaps(first)
        await self.invalidate_range_end(gfn, gfn + pages)

    async def host_splits(self, gfn: int, pages: int) -> None:
        """The host splits all huge pages of that range, one after the other."""
        for first in self.host_pages.huge(gfn, pages):
            await self.invalidate_range_start(first, first + REGION)
            await HostChange(self.host_pages.split, (first,))
            await self.invalidate_range_end(first, first + REGION)

    async def host_swaps_out(self, gfn: int, pages: int) -> None:
        """``shrink_folio_list``: a huge page is split, then its pages go."""
        if not self.host_pages.transparent:
            await self.host_takes_range(gfn, pages)
            return
        await self.host_splits(gfn, pages)
        await self.invalidate_range_start(gfn, gfn + pages)
        await HostChange(self.host_pages.swap_out, (gfn, pages))
        await self.invalidate_range_end(gfn, gfn + pages)

    async def host_collapses(self, pages: int) -> None:
        """``khugepaged``: the next small pages, as many huge pages as that is, are huge again."""
        for _ in range(-(-pages // REGION)):
            first = self.host_pages.next_small()
            if first < 0:
                return
            await Spend(self.collapse_ns)
            await self.invalidate_range_start(first, first + REGION)
            await HostChange(self.host_pages.collapse, (first,))
            await self.invalidate_range_end(first, first + REGION)


def simulated(kernel: type[Any], *layers: type[Any]) -> type[Any]:
    """A kernel's class with the simulator's hooks, and with ``layers`` on top."""
    name = f"Simulated_{kernel.__name__}"
    return type(name, (*layers, Simulated, kernel), {"__module__": __name__})
