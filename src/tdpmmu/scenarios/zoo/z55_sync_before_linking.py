"""Z55: a table is linked again while a table below it is out of sync."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import TablePage
from tdpmmu.mmu.shadow_fault import ShadowFault
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class LinksAsItIs(ShadowFault):
    """Nobody looks below the table, and no WARN says so."""

    async def sync_before_linking(self, vcpu: VcpuCells, sp: TablePage) -> bool:
        return True

    async def links_unsync_children(self, sp: TablePage) -> None:
        return


ENTRY = Entry(
    id="z55",
    title="KVM: X86: Synchronize the shadow pagetable before link it",
    commit="65855ed8b034",
    fixed="5.15",
    kernel="6.12",
    scenario=Script(
        threads="shadow0: set:5[0]=- set:4[0]=1 cr3 set:5[0]=6 r1",
        setup="r0 w4",
        levels=3,
        pages=16,
        huge_level=1,
        tables="7: 6 3; 6: 5 -; 5: 0 2; 3: 4 -; 4: 5 7",
    ),
    prop="guest-translation",
    mechanism=(
        "The guest changes a last-level table, which is out of sync from then on, while the table "
        "above it is linked nowhere, and then links that where nothing was present. It need not "
        "flush for that, so nobody syncs the lower table, and the old mapping is used again."
    ),
    patch=LinksAsItIs,
)
