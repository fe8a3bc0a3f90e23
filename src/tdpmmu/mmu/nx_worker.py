"""The life of the NX recovery worker, and what wakes it (``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.machine.op import Read, WaitUntil, Write
from tdpmmu.mmu.mmio import Mmio

HOUR = 3_600_000
"""Milliseconds."""


class NxWorker(Mmio):
    """The worker sleeps for a period; who shortens the period wakes it."""

    def effective_period(self, period: int, ratio: int = 60) -> int:
        """``calc_nx_huge_pages_recovery_period``, in ms: 0 stands for an hour by the ratio."""
        return period or HOUR // max(1, ratio)

    def must_wake(self, old: int, new: int) -> bool:
        """``set_nx_huge_pages_recovery_param``: whether the worker has slept long enough now."""
        return self.effective_period(new) < self.effective_period(old)

    async def set_recovery_period(self, period: int) -> None:
        """A write to ``nx_huge_pages_recovery_period_ms``; VMs are on ``vm_list`` already."""
        old = await Read(self.kvm.nx_recovery_period)
        await Write(self.kvm.nx_recovery_period, period)
        if self.must_wake(old, period):
            await self.wake_worker()

    async def wake_worker(self) -> None:
        """``wake_up_process``: up to 6.13 the thread is there before the VM is on the list."""
        await Write(self.kvm.nx_worker_woken, True)

    async def first_run(self) -> None:
        """``kvm_mmu_post_init_vm``: from 6.14 the thread is made when a vCPU first runs."""
        await Write(self.kvm.nx_worker_created, True)

    async def worker_sleeps(self) -> None:
        """Until it is woken: the period is longer than anybody here waits."""
        await WaitUntil(self.kvm.nx_worker_woken, True)
        await Write(self.kvm.nx_worker_woken, False)
