"""Roots that are allocated and given up under mmu_lock held for read (6.9)."""

from __future__ import annotations

import pytest

from tdpmmu.arch.table import TablePage
from tdpmmu.scenarios.question import HOLDS, Question, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.linux_6_12 import Linux_6_12
from tdpmmu.versions.registry import apply, kernel_class

RELOAD = Script(threads="vcpu0: w0; vcpu1: w0; ioctl: zap-all-fast", setup="w0", pages=2)
"""Two vCPUs lose their root at once; each has pages for a root and one table of its own."""


class AllocatesWithoutPagesLock(Linux_6_12):
    """mmu_lock for read is thought to be enough."""

    async def get_vcpu_root(self, pool: int, as_id: int, guest_mode: bool = False) -> TablePage:
        await self.kvm.mmu_lock.read_lock()
        root = await self.usable_root(as_id, guest_mode)
        if root is None:
            root = await self.alloc_tdp_root(pool, as_id, guest_mode)
        await self.kvm.mmu_lock.read_unlock()
        return root


class KeepsReference(Linux_6_12):
    """A root of another role is looked at and its reference kept."""

    async def usable_root(self, as_id: int, guest_mode: bool) -> TablePage | None:
        root = await self.first_root()
        if root is not None and await self.page_as_id(root) == as_id:
            return root
        return None


@pytest.mark.parametrize("kernel", ["6.12", "6.18"])
def test_two_vcpus_reload_at_once(kernel: str) -> None:
    assert ask(Question(RELOAD, kernel_class(kernel), kernel)).status == HOLDS


def test_the_list_is_not_mmu_locks_alone() -> None:
    name = (f"{__file__}:AllocatesWithoutPagesLock",)
    asked = Question(RELOAD, apply(kernel_class("6.12"), AllocatesWithoutPagesLock), "6.12", name)
    assert "guard" in {found.prop for found in ask(asked).violations}


def test_a_reference_that_is_kept_leaks_the_root() -> None:
    script = Script(threads="vcpu0: w0; smm1: w0; ioctl: zap-all-fast", setup="w0")
    name = (f"{__file__}:KeepsReference",)
    asked = Question(script, apply(kernel_class("6.12"), KeepsReference), "6.12", name)
    assert "leak" in {found.prop for found in ask(asked).violations}
