"""Dirty logging in all its modes: clean as it is, and each part missed when it is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.dirty_log import DirtyLog
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.log_protect import LogProtect
from tdpmmu.mmu.page_split import PageSplit
from tdpmmu.mmu.shadow_log import ShadowLog
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.question import HOLDS, Question, Verdict, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.linux_6_18 import Linux_6_18
from tdpmmu.versions.registry import KERNELS, apply, kernel_class

LOG_ON = Script(threads="vcpu0: w0 w1; user: log-on:0", setup="w0", slots="0-1 2-3")
LOG_OFF = Script(threads="vcpu0: w0 x1; user: log-off:0", setup="w0 w1", slots="0-1:log 2-3")
CLEAR = Script(
    threads="vcpu0: w0 w1; user: get-log:0 clear-log:0-1",
    setup="w0",
    slots="0-1:log 2-3",
    options="manual-protect",
)
ALL_SET = Script(
    threads="vcpu0: w0 w1; user: log-on:0 get-log:0 clear-log:0-1",
    setup="w0",
    slots="0-1 2-3",
    options="initially-set",
)
ALL_SET_UNSPLIT = Script(
    threads="vcpu0: w0 w1; user: log-on:0 clear-log:0-1",
    setup="w0",
    slots="0-1 2-3",
    options="initially-set no-eager-page-split",
)
SHADOWED = Script(
    threads="shadow0: w0 w1; user: log-on:0 get-log:0",
    setup="w0",
    slots="0-1 2-3",
    tables="3: 2 -; 2: 0 1",
    pages=12,
)
SHADOWED_HUGE = replace(SHADOWED, tables="3: 0L -")
SHADOWED_ALL_SET = replace(
    SHADOWED_HUGE, threads="shadow0: w0 w1; user: log-on:0 clear-log:0-1", options="initially-set"
)
SHADOWED_OFF = replace(
    SHADOWED_HUGE, threads="shadow0: w0 x1; user: log-off:0", setup="w0 w1", slots="0-1:log 2-3"
)
BOTH_MMUS = replace(SHADOWED_HUGE, threads="shadow0: w0; vcpu1: w1; user: log-on:0")


def with_options(script: Script, options: str) -> Script:
    return replace(script, options=f"{script.options} {options}".strip())


def look(script: Script, kernel: str = "6.12", patches: Sequence[type[Any]] = ()) -> Verdict:
    named = tuple(f"{__file__}:{patch.__name__}" for patch in patches)
    return ask(Question(script, apply(kernel_class(kernel), *patches), kernel, named))


def broken(verdict: Verdict) -> set[str]:
    return {found.prop for found in verdict.violations}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("options", ["", "pml", "no-eager-page-split"])
@pytest.mark.parametrize("script", [LOG_ON, LOG_OFF, CLEAR], ids=["on", "off", "clear"])
def test_logging_misses_nothing(script: Script, options: str, kernel: str) -> None:
    verdict = look(with_options(script, options), kernel)
    assert verdict.status == HOLDS, verdict.sentence()


@pytest.mark.parametrize("kernel", ["5.12", "6.12", "6.18"])
@pytest.mark.parametrize("options", ["", "pml", "no-eager-page-split"])
@pytest.mark.parametrize(
    "script", [SHADOWED, SHADOWED_HUGE, SHADOWED_OFF], ids=["small", "huge", "off"]
)
def test_logging_misses_nothing_of_shadow_pages(script: Script, options: str, kernel: str) -> None:
    verdict = look(with_options(script, options), kernel)
    assert verdict.status == HOLDS, verdict.sentence()


@pytest.mark.parametrize("kernel", ["6.1", "6.18"])
def test_all_set_at_first_misses_nothing_of_shadow_pages(kernel: str) -> None:
    verdict = look(SHADOWED_ALL_SET, kernel)
    assert verdict.status == HOLDS, verdict.sentence()


def test_logging_begins_in_both_mmus_at_once() -> None:
    verdict = look(with_options(BOTH_MMUS, "no-eager-page-split"), "6.18")
    assert verdict.status == HOLDS, verdict.sentence()


@pytest.mark.parametrize("options", ["", "pml"])
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_all_set_at_first_misses_nothing(kernel: str, options: str) -> None:
    verdict = look(with_options(ALL_SET, options), kernel)
    assert verdict.status == HOLDS, verdict.sentence()


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_huge_pages_protected_at_clear_leave_the_lock_without_a_flush(kernel: str) -> None:
    """docs/findings.md: MMU-writable goes, and the flush comes after the lock."""
    assert broken(look(ALL_SET_UNSPLIT, kernel)) == {"flush-owed"}


class ForgetsToClear(LogProtect):
    async def clear_dirty_masked(self, slot: Memslot, gfns: tuple[int, ...]) -> None:
        return


class ForgetsTheSlot(LogProtect):
    async def clear_range_in(
        self, root: TablePage, slot: Memslot, bits: int, min_level: int
    ) -> None:
        return


class ForgetsHugePages(DirtyLog):
    async def protect_huge_pages(self, slot: Memslot, first: int, last: int, pool: int) -> None:
        return


class ForgetsTheFlush(DirtyLog):
    async def flush_remote_tlbs(self) -> None:
        return


class ForgetsShadowPages(LogProtect):
    async def rmap_write_protect(
        self, gfn: int, pt_protect: bool, first: int = 1, last: int = 0
    ) -> bool:
        return False


class ForgetsToFlushCollapsed(ShadowLog):
    """What is collapsed is only dropped."""

    async def zap_collapsible_rmap(self, slot: Memslot, gfn: int, level: int) -> bool:
        await super().zap_collapsible_rmap(slot, gfn, level)
        return False


class SplitsHalf(ShadowLog):
    """A table takes the place of a huge page of which it maps one half."""

    async def link_shadow_page(self, sptep: Cell, sp: TablePage, flush: bool = True) -> None:
        if not flush:
            await self.page_zap_pte(sp, sp.entries[0], None)
        await super().link_shadow_page(sptep, sp, flush)


class RoundsDown(DirtyLog):
    def crosses_huge_pages(self, first: int, last: int) -> bool:
        pages = self.kvm.geometry.pages(2)
        return first // pages != last // pages


class ForgetsToFlushRecovered(Linux_6_18):
    """The tables that huge pages have replaced are freed under a CPU that walks them."""

    async def collapse_range(self, root: TablePage, slot: Memslot) -> None:
        kvm = self.kvm
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages, min_level=2)
        while await it.next_pte():
            if await self.is_collapsible(slot, it):
                huge = await self.make_huge_spte(it)
                if huge:
                    await self.set_spte_atomic(it, huge)
        await kvm.rcu.read_unlock()


@pytest.mark.parametrize(
    ("script", "patch", "kernel", "prop"),
    [
        (CLEAR, ForgetsToClear, "6.12", "dirty-log"),
        (CLEAR, ForgetsTheFlush, "6.12", "dirty-log"),
        (with_options(CLEAR, "pml"), ForgetsToClear, "6.12", "dirty-log"),
        (LOG_ON, ForgetsTheSlot, "6.12", "dirty-log"),
        (LOG_ON, ForgetsTheSlot, "5.12", "dirty-log"),
        (LOG_ON, ForgetsTheFlush, "6.18", "dirty-log"),
        (ALL_SET, ForgetsHugePages, "6.12", "dirty-log"),
        (SHADOWED, ForgetsShadowPages, "6.12", "dirty-log"),
        (SHADOWED_HUGE, ForgetsShadowPages, "6.12", "dirty-log"),
        (SHADOWED_HUGE, SplitsHalf, "6.12", "flush-owed"),
        (SHADOWED_OFF, ForgetsToFlushCollapsed, "6.12", "flush-owed"),
        (LOG_OFF, ForgetsToFlushRecovered, "6.18", "freed-table"),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else "in"),
)
def test_what_is_left_out_is_missed(
    script: Script, patch: type[Any], kernel: str, prop: str
) -> None:
    assert prop in broken(look(script, kernel, [patch]))


@pytest.mark.parametrize(
    ("options", "kernels", "split"),
    [
        ("", ("6.1", "6.12", "6.18"), True),
        ("", ("5.12", "5.13"), False),
        ("no-eager-page-split", ("6.1", "6.12", "6.18"), False),
    ],
)
def test_who_splits_huge_pages_as_logging_begins(
    options: str, kernels: tuple[str, ...], split: bool
) -> None:
    for kernel in kernels:
        made: list[str] = []

        class Watched(PageSplit):
            async def split_huge_page(self, it: TdpIter, sp: TablePage, shared: bool) -> bool:
                made.append(sp.name)  # noqa: B023
                return await super().split_huge_page(it, sp, shared)

        look(with_options(LOG_ON, options), kernel, [Watched])
        assert bool(made) == split, kernel


def test_a_word_that_ends_with_the_first_gfn_of_a_huge_page() -> None:
    """docs/findings.md: ``ALIGN`` rounds up, so that huge page stays writable."""
    script = Script(
        threads="vcpu0: w2; user: log-on:1 clear-log:1-2",
        setup="w2",
        slots="0-0 1-3",
        options="initially-set no-eager-page-split",
    )
    assert "dirty-log" in broken(look(script, "6.18"))

    assert "dirty-log" not in broken(look(script, "6.18", [RoundsDown]))


def test_only_gfns_that_were_set_are_cleared() -> None:
    """``KVM_CLEAR_DIRTY_LOG`` of a clean page takes nothing, so it need not flush."""
    script = Script(
        threads="vcpu0: r0; user: clear-log:0-1",
        setup="r0",
        slots="0-1:log 2-3",
        options="manual-protect",
    )
    assert look(script, "6.12", [ForgetsTheFlush]).status == HOLDS


@pytest.mark.parametrize(
    ("step", "message"),
    [("clear-log:9", "there are 4"), ("clear-log:x", "not a number"), ("clear-log:2/0", "0 or 1")],
)
def test_bad_arguments_are_one_line(step: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look(Script(threads=f"user: {step}"))
