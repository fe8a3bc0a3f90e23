"""The APIC access page follows its host page (``x86.c``, ``vmx.c``, v5.12; e649b3f0188f, 5.8).

It is not pinned.  When the host takes it away every vCPU is asked to look it up again.
"""

from __future__ import annotations

from tdpmmu.arch.apic import RequestApicReload, TestAndClearApicReload, WriteApicAccessAddr
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import FlushOwnTlb, NeedsIpi
from tdpmmu.mmu.vcpu import Vcpu

APIC_ACCESS_PAGE = "apic-access-page"
"""The VM has one, behind its last gfn."""


class ApicPage(Vcpu):
    """``KVM_REQ_APIC_PAGE_RELOAD``."""

    def has_apic_page(self) -> bool:
        """Only VMs with the option have one."""
        return APIC_ACCESS_PAGE in self.kvm.config.options

    @property
    def apic_gfn(self) -> int:
        """``APIC_DEFAULT_PHYS_BASE``, of a slot of KVM's own."""
        return int(self.kvm.geometry.max_gfn - 1)

    async def host_unmaps(self, gfn: int) -> None:
        """``ptep_clear_flush_notify``: the host's entry goes, KVM is told, the page is reused."""
        if not self.has_apic_page():
            await super().host_unmaps(gfn)
            return
        memory = self.kvm.memory
        start = gfn // memory.block * memory.block
        await memory.unmap(gfn)
        await self.invalidate_range(start, start + memory.block)
        await memory.reuse(gfn)

    async def invalidate_range(self, start: int, end: int) -> None:
        """``kvm_arch_mmu_notifier_invalidate_range``: up to 6.2, between start and end."""
        if start <= self.apic_gfn < end:
            await self.request_apic_reload()

    async def request_apic_reload(self) -> None:
        """``kvm_make_all_cpus_request(kvm, KVM_REQ_APIC_PAGE_RELOAD)``."""
        kick = []
        for vcpu in self.kvm.vcpus_to_ask:
            await RequestApicReload(vcpu)
            if await NeedsIpi(self.kvm.hardware, vcpu):
                kick.append(vcpu)
        await self.kick_and_wait(tuple(kick))

    async def check_apic_page(self, vcpu: VcpuCells) -> None:
        if self.has_apic_page() and await TestAndClearApicReload(vcpu):
            await self.reload_apic_access_page(vcpu)

    async def reload_apic_access_page(self, vcpu: VcpuCells) -> None:
        """``vmx_set_apic_access_page_addr``: what the host has now."""
        pfn = await self.kvm.memory.get_user_page(self.apic_gfn)
        await WriteApicAccessAddr(vcpu, pfn)
        await FlushOwnTlb(vcpu)
