"""Z8: a table is marked only after others can see it."""

from tdpmmu.arch.table import SetPrivate, TablePage
from tdpmmu.machine.op import Write
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_12 import Linux_6_12


class MarksAfterLinking(Linux_6_12):
    """``nx_huge_page_disallowed`` is set together with the list."""

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        page = await super().alloc_page(fault, it)
        await SetPrivate(page.nx_huge_page_disallowed, False)
        return page

    async def track_new_page(self, sp: TablePage) -> None:
        await self.kvm.tdp_mmu_pages_lock.lock()
        await Write(sp.nx_huge_page_disallowed, True)
        await self.track_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()


ENTRY = Entry(
    id="z8",
    title="KVM: x86/mmu: Set disallowed_nx_huge_page in TDP MMU before setting SPTE",
    commit="61f94478547b",
    fixed="6.2",
    kernel="6.18",
    scenario=Script(threads="vcpu0: x0; vcpu1: w1; worker: recover"),
    prop="use-after-free",
    mechanism=(
        "A vCPU that fetches publishes a table before it marks it. A second vCPU sees an unmarked "
        "table where it may map a huge page, replaces it, and the first one marks and lists a "
        "page that is on its way to be freed."
    ),
    patch=MarksAfterLinking,
)
