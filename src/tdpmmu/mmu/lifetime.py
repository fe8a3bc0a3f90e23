"""The end of a VM: zap everything, drop the roots, wait for RCU (v5.12)."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.requests import FlushOwnTlb, LoadRoot
from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.events.records import TornDown, Warned
from tdpmmu.machine.op import FREE, FREED, Op, Step
from tdpmmu.mmu.apic_page import ApicPage
from tdpmmu.mmu.kvm import Kvm
from tdpmmu.mmu.shadow import InvalidList


@dataclass(frozen=True, slots=True)
class CountLeaks(Op):
    """Look for page table pages that nobody gave back."""

    kvm: Kvm

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.kvm.tdp_mmu_roots]:
            step.emit(Warned("tdp_mmu_roots is not empty at VM teardown"))
        leaked = tuple(p.name for p in self.kvm.pages if step[p.state] not in (FREE, FREED))
        step.emit(TornDown(leaked))

    def describe(self) -> str:
        return "the VM is gone"


class Lifetime(ApicPage):
    """Destruction."""

    async def destroy(self, roots: tuple[TablePage, ...]) -> None:
        """``kvm_mmu_zap_all``, every vCPU's ``kvm_mmu_unload``, ``kvm_mmu_uninit_tdp_mmu``.

        ``roots`` are the references that the vCPUs hold.
        """
        kvm = self.kvm
        # No vCPU runs any more: nothing is walked, and what TLBs hold is never used again.
        for vcpu in tuple(kvm.vcpus):
            await LoadRoot(vcpu, ())
            await FlushOwnTlb(vcpu)
        await kvm.mmu_lock.write_lock()
        await self.zap_all_shadow_pages()
        await self.tdp_mmu_zap_all()
        await kvm.mmu_lock.write_unlock()
        await self.put_vcpu_roots(roots)
        await kvm.rcu.barrier()
        await CountLeaks(kvm)

    async def put_vcpu_roots(self, roots: tuple[TablePage, ...]) -> None:
        """``kvm_mmu_free_roots`` of every vCPU."""
        invalid_list = InvalidList()
        await self.kvm.mmu_lock.write_lock()
        for root in roots:
            header = await ReadHeader(root)
            if header.tdp:
                await self.put_root(root)
            else:
                await self.free_root_page(root, invalid_list)
        await self.commit_zap_page(invalid_list)
        await self.kvm.mmu_lock.write_unlock()
