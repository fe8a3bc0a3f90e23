"""The pages that a vCPU has in stock for page tables: many are allocated at once, in one fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.kernel.locks import Sleep
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.machine.op import Op
    from tdpmmu.worlds.simulate.clock import Clock

CAPACITY = 40
"""``KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE``."""

LEAST = 5
"""``PT64_ROOT_MAX_LEVEL``: what one fault may need."""

TOPUP = "mmu_topup_memory_caches"

STREAM = 1 << 33
"""Random numbers of stocks are none of those of vCPUs."""


class MemoryCaches:
    """``mmu_shadow_page_cache`` and ``mmu_page_header_cache`` of each vCPU, which go together.

    A fault that finds fewer than ``LEAST`` pages fills up to ``CAPACITY`` before it does anything
    else, and pays for all of them.  How much is there at first depends on what the guest did before
    and is left to the seed.
    """

    def __init__(self, clock: Clock, costs: Costs, vcpus: int, seed: int) -> None:
        rng = np.random.default_rng([seed, STREAM])
        self._left: list[int] = rng.integers(LEAST, CAPACITY + 1, vcpus).tolist()
        self._costs = costs
        self._sleep = clock.handlers[Sleep]
        clock.handlers[Sleep] = self._might_topup

    def low(self, vcpu: int) -> bool:
        """Whether the next fault that is not a fast one fills up."""
        return self._left[vcpu] < LEAST

    def take(self, thread: SimThread) -> int:
        """What a page table costs that thread; who is no vCPU allocates each one by itself."""
        if thread.kind != "vcpu" or not self._left[thread.number]:
            return self._costs.table_alloc
        self._left[thread.number] -= 1
        return self._costs.write

    def _might_topup(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Sleep)
        if op.where == TOPUP and self.low(thread.number):
            thread.now += (CAPACITY - self._left[thread.number]) * self._costs.table_alloc
            self._left[thread.number] = CAPACITY
        return self._sleep(thread, op)
