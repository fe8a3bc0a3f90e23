"""Z27 (CVE-2022-45869): a fault under the read lock reclaims shadow pages."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.machine.op import Read
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.page_fault import PageFault
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.zoo.entry import Entry


class ReclaimsForTheTdpMmu(PageFault):
    """``make_mmu_pages_available``, in the way of both MMUs; here the quota is always used up."""

    async def is_page_fault_stale(self, vcpu: VcpuCells, fault: Fault) -> bool:
        invalid_list = InvalidList()
        pages = await Read(self.kvm.active_mmu_pages)
        if pages:
            await self.prepare_zap_page(pages[-1], invalid_list)
            await self.commit_zap_page(invalid_list)
        return await super().is_page_fault_stale(vcpu, fault)


ENTRY = Entry(
    id="z27",
    title="KVM: x86/mmu: Fix race condition in direct_page_fault",
    commit="47b0c2e4c220",
    fixed="6.1",
    kernel="6.1",
    scenario=NxRecovery(levels=2, roots=1, nx_pages=0, legacy=1, gfns=1, unmap=False),
    prop="lock-context",
    mechanism=(
        "A TDP fault holds mmu_lock for read, but reclaimed shadow pages as a legacy fault does. "
        "Zapping them takes the lock for write, as two faults that do it at once change the same "
        "lists and rmaps."
    ),
    patch=ReclaimsForTheTdpMmu,
)
