"""The APIC access page: an address in the VMCS that no page table has (VMX).

A CPU in guest mode takes accesses to that frame for accesses to its APIC.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, Op, Step


@dataclass(frozen=True, slots=True)
class RequestApicReload(Op):
    """``kvm_make_request(KVM_REQ_APIC_PAGE_RELOAD, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.apic_reload] = True

    def describe(self) -> str:
        return f"KVM_REQ_APIC_PAGE_RELOAD for vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class TestAndClearApicReload(Op):
    """``kvm_check_request(KVM_REQ_APIC_PAGE_RELOAD, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        if not step[self.vcpu.apic_reload]:
            return False
        step[self.vcpu.apic_reload] = False
        return True

    def mover(self, step: Step) -> str:
        # Only this vCPU clears it: what is not set was not set before.
        return NEITHER if step[self.vcpu.apic_reload] else LEFT

    def describe(self) -> str:
        return "kvm_check_request(KVM_REQ_APIC_PAGE_RELOAD)"


@dataclass(frozen=True, slots=True)
class WriteApicAccessAddr(Op):
    """``vmcs_write64(APIC_ACCESS_ADDR, ...)``: by the vCPU itself, outside guest mode."""

    vcpu: VcpuCells
    pfn: int

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.apic_access_addr] = self.pfn

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"APIC_ACCESS_ADDR = pfn {self.pfn:#x}"
