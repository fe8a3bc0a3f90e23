"""Z38: a flush that was taken note of is lost when VMRUN fails."""

from tdpmmu.arch.hardware import IN_GUEST, OUTSIDE, VcpuCells
from tdpmmu.arch.requests import SetMode, TestAndClearRequest
from tdpmmu.machine.op import Choose
from tdpmmu.mmu.vcpu import Vcpu
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class LosesTlbControl(Vcpu):
    """The request becomes TLB_CONTROL in the VMCB, which a failed VMRUN clears unserved."""

    async def enter_guest(self, vcpu: VcpuCells) -> bool:
        if await TestAndClearRequest(vcpu):
            await SetMode(self.kvm.hardware, vcpu, IN_GUEST)
            if await Choose("VMRUN fails", (False, True)):
                await SetMode(self.kvm.hardware, vcpu, OUTSIDE)
                return False
            await SetMode(self.kvm.hardware, vcpu, OUTSIDE)
            await self.flush_own_tlb(vcpu)
        return await super().enter_guest(vcpu)


ENTRY = Entry(
    id="z38",
    title="KVM: SVM: Preserve TLB control (i.e. pending TLB flush) on failed VMRUN",
    commit="60d93c27859f",
    fixed="2026",
    kernel="6.18",
    scenario=Script(threads="vcpu0: w0; host: unmap:0", setup="w0"),
    prop="flush-request-lost",
    mechanism=(
        "KVM turns a flush request into a field of the VMCB and clears the request. If VMRUN "
        "fails the field is reset although nothing was flushed, and the next entry uses the old "
        "translations."
    ),
    patch=LosesTlbControl,
    kernels=(),
)
