"""Z23: a fault maps into a root that a memslot update has invalidated meanwhile."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.mmu.fault import Fault
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class MapsIntoInvalidRoot(Linux_6_1):
    """Only an invalidation by the host makes a fault stale."""

    async def is_page_fault_stale(self, vcpu: VcpuCells, fault: Fault) -> bool:
        return fault.slot is not None and await self.notifier_retry(fault)


ENTRY = Entry(
    id="z23",
    title="KVM: x86/mmu: Retry page fault if root is invalidated by memslot update",
    commit="a955cad84cda",
    fixed="5.16",
    kernel="6.12",
    scenario=Script(threads="vcpu0: x0; ioctl: slot-delete:2", slots="0-1 2-3"),
    prop="leak",
    mechanism=(
        "A memslot update marks all roots invalid and zaps them. A fault that had passed its "
        "checks before takes mmu_lock afterwards and installs SPTEs and tables into a root that "
        "nobody will zap again."
    ),
    patch=MapsIntoInvalidRoot,
)
