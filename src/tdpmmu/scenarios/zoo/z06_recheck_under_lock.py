"""Z6, twice: a table goes on the list of possible NX huge pages after somebody has zapped it."""

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.op import Read
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_12 import Linux_6_12


class TracksUnconditionally(Linux_6_12):
    """Under the lock nobody looks whether the table is still marked."""

    async def track_new_page(self, sp: TablePage) -> None:
        await self.kvm.tdp_mmu_pages_lock.lock()
        await self.track_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()


class ChecksOutsideTheLock(Linux_6_12):
    """The look comes before the lock."""

    async def track_new_page(self, sp: TablePage) -> None:
        if not await Read(sp.nx_huge_page_disallowed):
            return
        await self.kvm.tdp_mmu_pages_lock.lock()
        await self.track_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()


# Recovery under the read lock takes down a 2M-level table with what a fault hangs below it.
SCENARIO = Script(
    threads="vcpu0: x2; worker: recover recover", setup="x0", levels=3, huge_level=3, pages=12
)

ENTRIES = (
    Entry(
        id="z6",
        title="KVM: x86/mmu: Re-check under lock that TDP MMU SP hugepage is disallowed",
        commit="21a36ac6b6c7",
        fixed="6.2",
        kernel="6.18",
        scenario=SCENARIO,
        prop="use-after-free",
        mechanism=(
            "A vCPU links a table under the read lock and only then takes tdp_mmu_pages_lock to "
            "put it on the list. Whoever zaps the table in between sees it unlisted and frees it, "
            "and the list gets a freed page."
        ),
        patch=TracksUnconditionally,
        fix_of="z8",
    ),
    Entry(
        id="z6-review",
        title="KVM: x86/mmu: Split NX hugepage recovery flow into TDP and non-TDP flow (v2)",
        commit="21a36ac6b6c7",
        fixed="6.2",
        kernel="6.18",
        scenario=SCENARIO,
        prop="use-after-free",
        mechanism=(
            "A series of August 2024 moved the check out of the spinlock while it split the list. "
            "The window of z6 was open again; the reviewer quoted the commit that had closed it."
        ),
        patch=ChecksOutsideTheLock,
        fix_of="z6",
    ),
)
