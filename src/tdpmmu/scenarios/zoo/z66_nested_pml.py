"""Z66: dirty bits of L2's shadow pages are cleared, but the CPU cannot log what L2 writes."""

from tdpmmu.mmu.log_protect import LogProtect
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class DirtyBitsWillDo(LogProtect):
    """With page-modification logging no SPTE needs write protection."""

    async def ad_need_write_protect(self, sptep: object) -> bool:
        return False


ENTRY = Entry(
    id="z66",
    title="KVM: x86: fix nested guest live migration with PML",
    commit="1f4e5fc83a42",
    fixed="5.4",
    kernel="6.12",
    scenario=Script(
        threads="shadow0: w0; user: get-log:0",
        setup="w0",
        slots="0-1:log 2-3",
        pages=12,
        tables="3: 2 -; 2: 0 1",
        options="pml",
    ),
    prop="dirty-log",
    mechanism=(
        "The CPU's log holds L2's addresses, so it is no use where KVM shadows L1's tables for "
        "L2. Clearing the dirty bits of those SPTEs, instead of write-protecting them, lets L2 "
        "write without a trace."
    ),
    patch=DirtyBitsWillDo,
)
