"""Z7 (bugzilla 217562): a table is found and zapped before it is on the list of TDP tables."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.machine.op import Read
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.page_fault import PageFault
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class RetriesInInvalidRoot(PageFault):
    """a955cad84cda: nobody links a table below a root that is being zapped."""

    async def is_page_fault_stale(self, vcpu: VcpuCells, fault: Fault) -> bool:
        root = self.kvm.hardware.page_by_number[fault.root]
        if await Read(root.invalid):
            return True
        return await super().is_page_fault_stale(vcpu, fault)


ENTRY = Entry(
    id="z7",
    title="bugzilla 217562: list_del of a TDP page that is not on the list yet",
    commit="a955cad84cda",
    fixed="5.16",
    kernel="5.13",
    scenario=Script(threads="vcpu0: x0; ioctl: slot-delete:2", slots="0-1 2-3"),
    prop="kernel-warning",
    mechanism=(
        "A vCPU publishes a table and then takes tdp_mmu_pages_lock to put it on the list. Who "
        "zaps the invalidated root under the read lock finds it first and takes it off a list "
        "that it is not on. The list went in 6.2; no fault maps into such a root since 5.16."
    ),
    fix=RetriesInInvalidRoot,
)
