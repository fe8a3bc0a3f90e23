"""Z67: a walk that yielded starts at the root again, and steps past what it finds there."""

from tdpmmu.events.records import Yielded
from tdpmmu.machine.op import Emit
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_5_13 import Linux_5_13


class StaysAtTheRoot(Linux_5_13):
    """The fix: a yield is only noted, and the next step goes to the root and no further."""

    async def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool = False) -> bool:
        if not self.may_yield_here(it) or not await self.kvm.mmu_lock.needbreak():
            return False
        await self.kvm.rcu.read_unlock()
        if flush:
            await self.flush_remote_tlbs()
        await self.break_lock(shared)
        await self.kvm.rcu.read_lock()
        await Emit(Yielded("tdp_mmu_iter_cond_resched"))
        it.yielded = True
        return True


ENTRY = Entry(
    id="z67",
    title="KVM: x86/mmu: Don't advance iterator after restart due to yielding",
    commit="3a0f64de479c",
    fixed="5.16",
    kernel="5.13",
    scenario=Script(threads="vcpu0: w2; user: log-on:0", setup="w0 w2", slots="0-3"),
    prop="dirty-log",
    mechanism=(
        "After a yield the walk is at the root's entry for the gfn that it heads for, and the loop "
        "then takes the next step. An entry of the root that is a huge page is passed over, so it "
        "stays writable as dirty logging begins."
    ),
    fix=StaysAtTheRoot,
    kernels=("6.1", "6.12", "6.18"),
)
