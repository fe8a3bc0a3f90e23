"""The dirty ring: nothing is lost between a vCPU's ring, userspace and the next write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpmmu.mmu.dirty_ring import DirtyRing
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.ring import SIZE, SOFT_LIMIT
from tdpmmu.scenarios.question import HOLDS, Question, Verdict, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import KERNELS, apply, kernel_class
from tdpmmu.worlds.explore.exploration import Budget

ROUND = "harvest reset-rings"
AGAIN = Script(threads=f"vcpu0: w0 w0; user: {ROUND}", setup="w0", slots="0-1:log 2-3")
APART = Script(
    threads="vcpu0: w0 w1; user: harvest; user2: reset-rings", setup="w0", slots="0-1:log 2-3"
)
FULL = Script(threads=f"vcpu0: w0 w1 w2 w3 w0; user: {ROUND}", slots="0-3:log")
SCATTERED = Script(threads=f"vcpu0: w3 w0 w3; user: {ROUND}", slots="0-3:log")
BEGINS = Script(threads=f"vcpu0: w0 w1; user: log-on:0 {ROUND}", setup="w0", slots="0-1 2-3")
EMULATED = Script(
    threads=f"vcpu0: emulate:0 emulate:1 emulate:0 emulate:1 emulate:0; user: {ROUND}",
    slots="0-1:log 2-3",
)
SHADOWED = Script(
    threads=f"shadow0: w0 w1; user: {ROUND}",
    setup="w0",
    slots="0-1:log 2-3",
    tables="3: 2 -; 2: 0 1",
    pages=12,
)
SCRIPTS = {
    "again": AGAIN,
    "apart": APART,
    "full": FULL,
    "scattered": SCATTERED,
    "begins": BEGINS,
    "emulated": EMULATED,
    "shadowed": SHADOWED,
}


def look(
    script: Script, kernel: str = "6.12", patches: Sequence[type[Any]] = (), options: str = ""
) -> Verdict:
    script = replace(script, options=f"dirty-ring {options}".strip())
    named = tuple(f"{__file__}:{patch.__name__}" for patch in patches)
    question = Question(script, apply(kernel_class(kernel), *patches), kernel, named)
    return ask(question, budget=Budget(states=50_000))


def broken(verdict: Verdict) -> set[str]:
    return {found.prop for found in verdict.violations}


@pytest.mark.parametrize("kernel", ["5.12", "6.1", "6.12", "6.18"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_rings_miss_nothing(name: str, kernel: str) -> None:
    verdict = look(SCRIPTS[name], kernel)
    assert verdict.status == HOLDS, verdict.sentence()


@pytest.mark.parametrize("kernel", ["5.13", "6.12"])
@pytest.mark.parametrize("name", ["again", "apart", "begins"])
def test_rings_miss_nothing_that_the_cpu_logs(name: str, kernel: str) -> None:
    verdict = look(SCRIPTS[name], kernel, options="pml")
    assert verdict.status == HOLDS, verdict.sentence()


class NeverArms(DirtyRing):
    async def reset_dirty_gfn(
        self, slot_id: tuple[int, int], offset: int, mask: int, pool: int
    ) -> None:
        return


class ForgetsTheFlush(DirtyRing):
    async def flush_remote_tlbs(self) -> None:
        return


class ForgetsTheFirst(DirtyRing):
    """Offset 0 is taken for none at all."""

    async def reset_dirty_gfn(
        self, slot_id: tuple[int, int], offset: int, mask: int, pool: int
    ) -> None:
        if offset:
            await super().reset_dirty_gfn(slot_id, offset, mask, pool)


class NeverPushes(DirtyRing):
    async def mark_page_dirty_in_slot(self, slot: Memslot | None, gfn: int) -> None:
        return


class MergesAll(DirtyRing):
    """Entries far from each other are taken to be near."""

    def coalesce(self, offset: int, mask: int, entry: int) -> tuple[int, int] | None:
        return offset, mask


class NeverLeaves(DirtyRing):
    async def dirty_ring_exit(self, vcpu: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("script", "patch", "prop"),
    [
        (AGAIN, NeverArms, "dirty-log"),
        (AGAIN, ForgetsTheFlush, "dirty-log"),
        (AGAIN, ForgetsTheFirst, "dirty-log"),
        (BEGINS, NeverPushes, "dirty-log"),
        (SCATTERED, MergesAll, "dirty-log"),
        (EMULATED, NeverLeaves, "kernel-warning"),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else "in"),
)
def test_what_is_left_out_is_missed(script: Script, patch: type[Any], prop: str) -> None:
    assert prop in broken(look(script, patches=[patch]))


def test_rings_and_all_set_at_first_do_not_go_together() -> None:
    """docs/findings.md: nothing is protected, and no bitmap says that all is dirty."""
    assert broken(look(BEGINS, options="initially-set")) == {"dirty-log"}


def test_there_is_no_bitmap_to_take() -> None:
    script = Script(threads="vcpu0: w0; user: get-log:0 clear-log:0-1", slots="0-1:log 2-3")
    assert look(script, patches=[ForgetsTheFlush]).status == HOLDS


def test_a_ring_that_is_not_emptied_leaves_room_for_one_exit() -> None:
    assert SOFT_LIMIT < SIZE
    assert SIZE & (SIZE - 1) == 0


class Coalesces(DirtyRing):
    """Words of any length, and no VM."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def bits_per_long(self) -> int:
        return self.bits


@given(
    st.sampled_from([2, 4, 64]),
    st.lists(st.integers(min_value=0, max_value=200), min_size=1, max_size=12),
)
def test_masks_say_what_the_entries_say(bits: int, offsets: list[int]) -> None:
    ring = Coalesces(bits)
    armed: set[int] = set()
    offset, mask = offsets[0], 1
    for entry in [*offsets[1:], None]:
        merged = None if entry is None else ring.coalesce(offset, mask, entry)
        if merged is not None:
            offset, mask = merged
            assert mask < 1 << bits
            continue
        armed |= {offset + bit for bit in range(bits) if mask >> bit & 1}
        if entry is not None:
            offset, mask = entry, 1
    assert armed == set(offsets)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        ("harvest", "", "takes the option dirty-ring"),
        ("reset-rings", "", "takes the option dirty-ring"),
        ("forge:0[9]=1", "dirty-ring", "no such entry"),
        ("forge:5[0]=1", "dirty-ring", "no such entry"),
        ("forge:x", "dirty-ring", "expected VCPU"),
    ],
)
def test_bad_arguments_are_one_line(step: str, options: str, message: str) -> None:
    script = Script(threads=f"vcpu0: w0; user: {step}", options=options)
    with pytest.raises(ValueError, match=message):
        script.build(KERNELS["6.12"])
