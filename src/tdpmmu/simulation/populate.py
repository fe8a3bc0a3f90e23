"""Guest memory that is mapped before time begins."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import numpy as np

from tdpmmu.arch.spte import PAGE_SHIFT, Access
from tdpmmu.arch.table import ReadSpte
from tdpmmu.machine.op import Op, Step
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.simulation.tables import ENTRIES, ArrayPage, SimKvm
from tdpmmu.worlds.live import LiveCall, LiveStep


def at_once(body: Coroutine[Op, Any, Any], kvm: SimKvm) -> Any:
    """Run a call before time begins: nobody else is there."""
    call = LiveCall(body, kvm.layout.memory(), 0, lambda op, alternatives: 0)
    while not call.done:
        call.go()
    return call.result


def map_all(mmu: Any, kvm: SimKvm, root: ArrayPage, level: int) -> None:
    """Map all guest memory by leaves of ``level``, tables as the kernel's own faults make them."""
    step = LiveStep(kvm.layout.memory(), 0)
    _fill(mmu, kvm, step, root, root, 0, kvm.geometry.levels, level)


def _fill(
    mmu: Any,
    kvm: SimKvm,
    step: Step,
    root: ArrayPage,
    table: ArrayPage,
    base: int,
    level: int,
    leaf: int,
) -> None:
    size = kvm.geometry.pages(level)
    count = min(ENTRIES, -(-(kvm.guest_pages - base) // size))
    if level == leaf:
        whole = (kvm.guest_pages - base) // size
        execute = leaf == 1 or not kvm.config.nx_huge_pages
        first = kvm.format.leaf(kvm.memory.pfn(base, 0), leaf, write=True, execute=execute)
        stride = np.uint64(size << PAGE_SHIFT)
        row = np.arange(min(count, whole), dtype=np.uint64) * stride + np.uint64(first)
        table.row()[: len(row)] = row
        if whole < count:
            _below(mmu, kvm, step, root, table, base + whole * size, level, leaf - 1)
        return
    for index in range(count):
        _below(mmu, kvm, step, root, table, base + index * size, level, leaf)


def _below(
    mmu: Any,
    kvm: SimKvm,
    step: Step,
    root: ArrayPage,
    table: ArrayPage,
    gfn: int,
    level: int,
    leaf: int,
) -> None:
    """A table below ``table`` for ``gfn``, filled."""
    fault = Fault(gfn, Access.WRITE, root.number, 0, 0)
    it = TdpIter(kvm, root, gfn, gfn + 1)
    it.level, it.gfn = level, gfn
    it.sptep = table.entries[kvm.geometry.index(gfn, level)]
    it.old_spte = ReadSpte(it.sptep).apply(step, 0)
    page: ArrayPage = at_once(mmu.alloc_page(fault, it), kvm)
    step[it.sptep] = kvm.format.nonleaf(page.pfn)
    at_once(mmu.list_split_page(page, False), kvm)
    _fill(mmu, kvm, step, root, page, gfn, level - 1, leaf)
