"""Z40: L2's dirty bits are cleared although the CPU does not log what L2 makes dirty."""

from tdpmmu.arch.table import TablePage
from tdpmmu.mmu.log_protect import PML, LogProtect
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class ClearsDirtyBitsOfL2(LogProtect):
    """With page-modification logging dirty bits will do for every root."""

    async def need_write_protect(self, root: TablePage) -> bool:
        return PML not in self.kvm.config.options


ENTRY = Entry(
    id="z40",
    title="KVM: x86/mmu: Write-protect L2 SPTEs in TDP MMU when clearing dirty status",
    commit="2673dfb591a3",
    fixed="6.9",
    kernel="6.12",
    scenario=Script(
        threads="l2-0: w0; ioctl: get-log:0", setup="w0", slots="0-1:log 2-3", options="pml"
    ),
    prop="dirty-log",
    mechanism=(
        "Page-modification logging is off while L2 runs, so L2's SPTEs have to lose their W bit. "
        "Clearing the dirty bit instead lets L2 write again without anybody hearing of it."
    ),
    patch=ClearsDirtyBitsOfL2,
)
