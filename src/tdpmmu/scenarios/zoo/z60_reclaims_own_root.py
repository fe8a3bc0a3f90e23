"""Z60 (CVE-2026-64561): a fault looks whether its root is stale, then reclaims that very root."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import TablePage
from tdpmmu.machine.op import Read
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.shadow_fault import ShadowFault
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class LooksThenReclaims(ShadowFault):
    """The order from 5.9 on, with neither a look at ``root_count`` nor one at the parent's role."""

    async def zaps_orphan(self, child: TablePage) -> bool:
        return not await Read(child.parent_ptes)

    async def inherits_invalid(self, parent: TablePage) -> bool:
        return True

    async def ready_to_map(self, vcpu: VcpuCells, fault: Fault) -> bool:
        if await self.is_page_fault_stale(vcpu, fault):
            return False
        await self.make_mmu_pages_available()
        return True


ENTRY = Entry(
    id="z60",
    title="KVM: x86: Check for invalid/obsolete root *after* making MMU pages available",
    commit="2abd5287f083",
    fixed="7.2",
    kernel="6.12",
    scenario=Script(
        threads="shadow0: unload; shadow1: r1",
        setup="shadow0:r0",
        levels=3,
        pages=12,
        huge_level=1,
        mmu_pages=4,
        tables="7: 6 -; 6: 5 -; 5: 0 1",
        cr3="7 6/2",
    ),
    prop="kernel-warning",
    mechanism=(
        "A root is also a table below another root, which is reclaimed: as its last parent is gone "
        "it is zapped, too, and marked invalid, though the vCPU that faults is running on it. The "
        "fault has looked for that before, so it hangs new pages below an invalid root."
    ),
    patch=LooksThenReclaims,
)
