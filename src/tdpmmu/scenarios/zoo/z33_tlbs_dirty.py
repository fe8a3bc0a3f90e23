"""Z33: a sync drops a leaf without a flush; write protection then finds nothing to flush."""

from tdpmmu.mmu.shadow_pages import ShadowPages
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class SyncFlushes(ShadowPages):
    """The fix: whoever syncs flushes what it dropped."""

    async def dropped_in_sync(self) -> bool:
        return True


ENTRY = Entry(
    id="z33",
    title="KVM: X86: Fix missed remote tlb flush in rmap_write_protect()",
    commit="f81602958c11",
    fixed="5.15",
    kernel="5.13",
    scenario=Script(
        threads="shadow0: set:4[1]=- cr3 set:6[1]=1 r2; shadow1: w1",
        setup="w0 w1 w4 r6",
        levels=3,
        pages=16,
        huge_level=1,
        tables="7: 6 3; 6: 5 -; 5: 0 1; 3: 4 2; 4: 5 7; 2: 6 -; 1: 0 -",
    ),
    prop="tracked-write",
    mechanism=(
        "Syncing a table drops the leaf for a page and its rmap entry, and only counts that a "
        "flush is owed. The page then becomes a page table: write protection finds no leaf, does "
        "not flush, and another vCPU still writes the table through its TLB."
    ),
    fix=SyncFlushes,
    kernels=("6.1", "6.12", "6.18"),
)
