"""Z34: the count of dropped leaves is cut to an int, and sometimes reads as none."""

from tdpmmu.machine.op import Read
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.tlbs_dirty import TlbsDirty


class TruncatedCount(TlbsDirty):
    """An int has one bit here, so that two dropped leaves are enough."""

    async def tlbs_are_dirty(self) -> bool:
        count = await Read(self.kvm.tlbs_dirty)
        return bool(count % 2)


ENTRY = Entry(
    id="z34",
    title="kvm: check tlbs_dirty directly",
    commit="88bf56d04bc3",
    fixed="5.11",
    kernel="5.12",
    scenario=Script(
        threads="shadow0: set:2[0]=- set:2[1]=- cr3; shadow1: r0; host: unmap:0",
        setup="r0 r1 w2",
        levels=3,
        pages=16,
        huge_level=1,
        tables="7: 6 -; 6: 5 4; 5: 0 1; 4: 5 -",
    ),
    prop="stale-translation",
    mechanism=(
        "A sync counts, in a long, the leaves that it drops without a flush; the mmu_notifier "
        "flushes if there are any, but looks at the count as an int. When its lower half is zero "
        "the host takes a page back that another vCPU can still reach."
    ),
    patch=TruncatedCount,
)
