"""A kernel's class as the simulator runs it: what it asks of the host is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdpmmu.arch.requests import NeedsIpi, SendIpi
from tdpmmu.events.records import DirtyLogReturned
from tdpmmu.machine.op import Emit, Read
from tdpmmu.mmu.dirty_log import TakeDirtyBits
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.simulation.dirty import CopyDirtyLog, FindDirty
from tdpmmu.simulation.guest import MODES, Knobs
from tdpmmu.simulation.regions import SMALL_HOST, Regions

if TYPE_CHECKING:
    from tdpmmu.mmu.lifetime import Lifetime as Base
else:
    Base = object


class Simulated(Base):
    """Mixed into a kernel's class, as a patch is."""

    knobs: Knobs
    regions: Regions

    def host_pfn_mapping_level(self, slot: Memslot, gfn: int) -> int:
        """``host_pfn_mapping_level``."""
        if self.regions.has(SMALL_HOST, gfn):
            return 1
        return self.kvm.config.huge_level

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
        for word in words:
            taken = await TakeDirtyBits(kvm.dirty_bitmap[slot.as_id], slot.as_id, word)
            await self.arm_gfns(slot, taken, pool)
        await kvm.mmu_lock.write_unlock()
        if words:
            await self.flush_remote_tlbs()
        await Emit(DirtyLogReturned(slot.as_id))

    # --- the host -------------------------------------------------------------------------------

    async def host_takes_range(self, gfn: int, pages: int) -> None:
        """The host takes pages away, block by block, inside one invalidation."""
        await self.invalidate_range_start(gfn, gfn + pages)
        block = self.kvm.memory.block
        last = min(gfn + pages, self.kvm.memory.pages)
        for first in range(gfn // block * block, last, block):
            await self.host_unmaps(first)
        await self.invalidate_range_end(gfn, gfn + pages)


def simulated(kernel: type[Any], *layers: type[Any]) -> type[Any]:
    """A kernel's class with the simulator's hooks, and with ``layers`` on top."""
    name = f"Simulated_{kernel.__name__}"
    return type(name, (*layers, Simulated, kernel), {"__module__": __name__})
