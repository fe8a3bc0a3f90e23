"""Z56: two faults under the read lock mark tables unsync at the same time."""

from tdpmmu.machine.op import Read
from tdpmmu.mmu.write_track import WriteTrack
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class MarksWithoutLock(WriteTrack):
    """``mmu_unsync_pages_lock`` is not there yet."""

    async def try_to_unsync_pages(
        self, as_id: int, gfn: int, can_unsync: bool, prefetch: bool = False
    ) -> bool:
        if await self.gfn_is_write_tracked(as_id, gfn):
            return False
        for sp in await Read(self.kvm.mmu_page_hash[gfn]):
            if not await self.shadows_gptes(sp):
                continue
            if not can_unsync:
                return False
            if not await Read(sp.unsync):
                await self.unsync_page(sp)
        return True


ENTRY = Entry(
    id="z56",
    title="KVM: x86/mmu: Protect marking SPs unsync when using TDP MMU with spinlock",
    commit="ce25681d59ff",
    fixed="5.14",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w4; vcpu1: w5; shadow0: r0",
        setup="shadow0:r0 shadow0:r2",
        levels=3,
        pages=8,
        huge_level=1,
        tables="7: 6 -; 6: 5 4; 5: 0 -; 4: 1 -",
    ),
    prop="kernel-warning",
    mechanism=(
        "Two TDP faults, which hold mmu_lock for read, make two tables of one parent writable and "
        "count them there as unsync, with plain additions. One gets lost, and when both are zapped "
        "the count drops below zero."
    ),
    patch=MarksWithoutLock,
)
