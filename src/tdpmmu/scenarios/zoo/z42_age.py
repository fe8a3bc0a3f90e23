"""Z42 once more: taking the accessed bit away by a plain write loses the dirty bit."""

from tdpmmu.arch.table import WriteSpte
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class ClearsBitsPlainly(Linux_6_1):
    """What was read, less a bit, is written back."""

    async def clear_spte_bits(self, it: TdpIter, mask: int) -> None:
        await WriteSpte(it.sptep, it.old_spte & ~mask)


ENTRY = Entry(
    id="z42-age",
    title="KVM: x86/mmu: Use atomic XCHG to write TDP MMU SPTEs with volatile bits",
    commit="ba3a6120a4e7",
    fixed="5.18",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w0; ioctl: get-log:0; host: age:0 unmap:0",
        setup="w0",
        slots="0-1:log 2-3",
        options="pml",
    ),
    prop="lost-dirty-bit",
    mechanism=(
        "The host asks whether a page is young, and KVM clears its accessed bit by writing back "
        "what it has read. A dirty bit that the CPU has set in between is gone, so the host drops "
        "the page as clean."
    ),
    patch=ClearsBitsPlainly,
)
