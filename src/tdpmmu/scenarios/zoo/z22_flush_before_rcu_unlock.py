"""Z22: a walk that yields leaves RCU before it flushes what it has removed."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class LeavesRcuFirst(Linux_6_1):
    """The two steps the wrong way round, once removed tables no longer flush by themselves."""

    async def recovery_ends(self, invalid_list, flush):  # type: ignore[no-untyped-def]
        await self.kvm.rcu.read_unlock()
        await self.remote_flush_or_zap(invalid_list, flush)


ENTRY = Entry(
    id="z22",
    title="KVM: x86/mmu: Do remote TLB flush before dropping RCU in TDP MMU resched",
    commit="bd29677952fa",
    fixed="5.18",
    kernel="6.1",
    scenario=Script(threads="vcpu0: x1; worker: recover", setup="x0"),
    prop="freed-table",
    mechanism=(
        "From 5.18 a removed table leaves its flush to the caller, and only the caller's RCU "
        "section keeps it from being freed. Leaving RCU before the flush lets hardware walk a "
        "freed table."
    ),
    patch=LeavesRcuFirst,
    fix_of=None,
)
