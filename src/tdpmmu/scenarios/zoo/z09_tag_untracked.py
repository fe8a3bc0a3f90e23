"""Z9: a table that is small for two reasons is not marked, and a huge page replaces it."""

from tdpmmu.arch.table import SetPrivate, TablePage
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_12 import Linux_6_12


class MarksOnlyWhatIsTracked(Linux_6_12):
    """Only a table that goes on the list gets the mark."""

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        page = await super().alloc_page(fault, it)
        tracked = fault.huge_page_disallowed and fault.req_level >= it.level
        await SetPrivate(page.nx_huge_page_disallowed, tracked)
        return page


ENTRY = Entry(
    id="z9",
    title="KVM: x86/mmu: Tag disallowed NX huge pages even if they're not tracked",
    commit="428e921611bc",
    fixed="6.2",
    kernel="6.12",
    scenario=Script(threads="vcpu0: x0 w1; ioctl: log-off:0", slots="0-1:log 2-3"),
    prop="nx-untagged",
    mechanism=(
        "A guest fetches from a slot that is logged: the table is small because of both. It is "
        "not marked, so when logging ends a write fault puts a huge page over the table that "
        "keeps executable pages small."
    ),
    patch=MarksOnlyWhatIsTracked,
)
