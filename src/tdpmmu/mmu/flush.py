"""Remote TLB flushes (``kvm_main.c`` and ``mmu.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import (
    FlushDone,
    HypercallFlush,
    NeedsIpi,
    RequestFlush,
    RequestReload,
    SendIpi,
    WaitIpi,
)
from tdpmmu.mmu.kvm import Kvm


class Flush:
    """``kvm_flush_remote_tlbs`` and its ranged sister; the bottom layer of every MMU."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm

    def position_key(self) -> str:
        """An MMU has no state but the cells of its VM."""
        return "mmu"

    async def flush_remote_tlbs(self) -> None:
        """``kvm_flush_remote_tlbs``: returns when no vCPU can use an old translation any more."""
        if self.kvm.config.ranged_flush:
            await HypercallFlush(self.kvm.hardware, 0, -1)
            return
        await self.make_all_cpus_request()
        await FlushDone()

    async def flush_remote_tlbs_with_address(self, start_gfn: int, pages: int) -> None:
        """``kvm_flush_remote_tlbs_with_address``: of gfns ``[start, start + pages)``.

        Without a hypervisor to ask (bare metal) it is a full flush.
        """
        if self.kvm.config.ranged_flush:
            await HypercallFlush(self.kvm.hardware, start_gfn, start_gfn + pages)
            return
        await self.flush_remote_tlbs()

    async def make_all_cpus_request(self) -> None:
        """``kvm_make_all_cpus_request(KVM_REQ_TLB_FLUSH)``: ask everyone, kick, wait."""
        kick = []
        for vcpu in self.kvm.vcpus_to_ask:
            await RequestFlush(self.kvm.hardware, vcpu)
            if await NeedsIpi(self.kvm.hardware, vcpu):
                kick.append(vcpu)
        await self.kick_and_wait(tuple(kick))

    async def reload_remote_mmus(self) -> None:
        """``kvm_make_all_cpus_request(kvm, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)``."""
        kick = []
        for vcpu in self.kvm.vcpus_to_ask:
            await RequestReload(self.kvm.hardware, vcpu)
            if await NeedsIpi(self.kvm.hardware, vcpu):
                kick.append(vcpu)
        await self.kick_and_wait(tuple(kick))

    async def kick_and_wait(self, vcpus: tuple[VcpuCells, ...]) -> None:
        """``smp_call_function_many`` with an empty function: each has been outside."""
        for vcpu in vcpus:
            await SendIpi(vcpu)
        for vcpu in vcpus:
            await WaitIpi(self.kvm.hardware, vcpu)
