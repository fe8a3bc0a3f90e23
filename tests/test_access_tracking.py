"""Ageing and access tracking, with and without A/D bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpmmu.arch.spte import KERNELS as SPTE_KERNELS
from tdpmmu.arch.spte import Access, SpteFormat, spte_format
from tdpmmu.events.records import SpteChanged
from tdpmmu.mmu.ageing import Ageing
from tdpmmu.mmu.fast_page_fault import FastPageFault
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.base import Built, MmuClass
from tdpmmu.scenarios.question import HOLDS, VACUOUS, Question, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import KERNELS, apply, kernel_class

NO_AD = [spte_format("ept", kernel, ad_bits=False) for kernel in SPTE_KERNELS]


@given(
    st.sampled_from(NO_AD),
    st.integers(0, (1 << 30) - 1),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_what_tracking_takes_comes_back(
    fmt: SpteFormat, pfn: int, level: int, write: bool, execute: bool
) -> None:
    spte = fmt.leaf(pfn, level, write=write, execute=execute)
    tracked = fmt.mark_for_access_track(spte)
    assert fmt.is_shadow_present(tracked)
    assert not fmt.is_walkable(tracked)
    assert fmt.is_access_track(tracked)
    assert not fmt.is_accessed(tracked)
    assert not any(fmt.allows(tracked, kind) for kind in Access)
    assert fmt.mark_for_access_track(tracked) == tracked
    assert fmt.pfn(tracked) == pfn
    back = fmt.restore_acc_track(tracked) | fmt.accessed
    assert back == spte & ~fmt.writable
    writable = fmt.leaf(pfn, level, write=True, execute=execute)
    assert fmt.granted(tracked) | fmt.accessed | fmt.dirty == writable


def test_without_tracking_nothing_is_taken_but_the_accessed_bit() -> None:
    npt = spte_format("npt", "6.12")
    spte = npt.leaf(5, 1, write=True, execute=True)
    assert npt.mark_for_access_track(spte) == spte & ~npt.accessed
    assert npt.is_walkable(npt.mark_for_access_track(spte))


def test_a_tracked_huge_page_is_split_into_tracked_ones() -> None:
    fmt = spte_format("ept", "6.12", ad_bits=False)
    huge = fmt.leaf(8, 2, write=True, execute=False)
    small = fmt.split_child(fmt.mark_for_access_track(huge), 1, 1)
    assert fmt.is_access_track(small)
    assert fmt.granted(small) == fmt.leaf(9, 1, write=True, execute=True)
    assert not fmt.is_large(small)


def test_only_ept_goes_without() -> None:
    with pytest.raises(ValueError, match="npt always has A/D bits"):
        spte_format("npt", "6.12", ad_bits=False)
    with pytest.raises(ValueError, match="exclude each other"):
        Script(format="ept", options="pml no-ad-bits").build(kernel_class("6.12"))


def _question(script: Script, kernel: str, *patches: type) -> Question:
    names = tuple(f"{__file__}:{patch.__name__}" for patch in patches)
    return Question(script, apply(kernel_class(kernel), *patches), kernel, names)


def _restores(event: object, fmt: SpteFormat) -> bool:
    """The very leaf that was tracked becomes accessible: ``fast_page_fault``, and no new leaf."""
    return (
        isinstance(event, SpteChanged)
        and fmt.is_access_track(event.old)
        and event.new == fmt.restore_acc_track(event.old) | fmt.accessed | fmt.writable
    )


@dataclass(frozen=True, slots=True)
class Restored(Script):
    """A script that is vacuous unless a tracked leaf is restored."""

    def build(self, mmu_class: MmuClass) -> Built:
        built = super(Restored, self).build(mmu_class)
        fmt = built.kvm.format
        built.machine.sometimes["restored"] = lambda event, step: _restores(event, fmt)
        return built


RESTORED = Restored(setup="w0 age:0-1", format="ept", options="no-ad-bits")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_page_is_made_inaccessible_and_comes_back(kernel: str) -> None:
    verdict = ask(_question(replace(RESTORED, threads="vcpu0: w0"), kernel))
    assert verdict.status == HOLDS
    fmt = spte_format("ept", kernel, ad_bits=False)
    built = RESTORED.build(kernel_class(kernel))
    last = [event for event in built.machine.prologue if isinstance(event, SpteChanged)][-1]
    assert fmt.is_access_track(last.new)
    assert ask(_question(replace(RESTORED, threads="vcpu0: r2"), kernel)).status == VACUOUS


class AgesWithoutTelling(Ageing):
    """The dirty status goes with the W bit."""

    async def age_spte(self, it: TdpIter) -> None:
        await self.write_spte(it, self.kvm.format.mark_for_access_track(it.old_spte))


class RestoresWriteAccess(FastPageFault):
    """Whether the leaf is MMU-writable is not asked."""

    async def fix_leaf(self, fault: Fault, slot: object) -> str:
        spte = self.kvm.format
        it = TdpIter(self.kvm, self.kvm.hardware.page_by_number[fault.root], fault.gfn, 4)
        while await it.next_pte():
            if spte.is_shadow_present(it.old_spte) and spte.is_access_track(it.old_spte):
                await self.write_spte(it, spte.restore_acc_track(it.old_spte) | spte.writable)
                return "RET_PF_FIXED"
        return ""


def _broken(script: Script, kernel: str, patch: type) -> set[str]:
    return {found.prop for found in ask(_question(script, kernel, patch)).violations}


@pytest.mark.parametrize("kernel", ["5.12", "6.12", "6.18"])
def test_dirtiness_that_is_not_passed_on_is_noticed(kernel: str) -> None:
    script = Script(threads="vcpu0: w0 ; host: age:0-1 unmap:0", format="ept", options="no-ad-bits")
    assert "lost-dirty-bit" in _broken(script, kernel, AgesWithoutTelling)
    assert ask(_question(script, kernel)).status == HOLDS


def test_write_access_that_was_taken_for_good_stays_away() -> None:
    script = Script(
        threads="vcpu0: w0; shadow: track:0; host: age:0-1",
        setup="w0",
        format="ept",
        options="no-ad-bits",
    )
    assert "tracked-write" in _broken(script, "6.12", RestoresWriteAccess)
    assert ask(_question(script, "6.12")).status == HOLDS
