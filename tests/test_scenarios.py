"""The NX recovery scenario's parameters, the thread's table, and vacuity."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from tdpmmu.scenarios.by_hand import World
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import EXIT_CODES, HOLDS, VACUOUS, VIOLATED, Question, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.thread_table import rows
from tdpmmu.versions.registry import KERNELS, kernel_class
from tdpmmu.worlds.explore.exploration import Budget

TINY = NxRecovery(levels=2, roots=1, legacy=0, gfns=1, unmap=False)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"levels": 1}, "--levels 1"),
        ({"levels": 6}, "--levels 6"),
        ({"fanout": 1}, "--fanout 1"),
        ({"fanout": 9}, "--fanout 9"),
        ({"vcpus": -1}, "--vcpus -1: at least 0"),
        ({"vcpus": 5}, "--vcpus 5: at most 4"),
        ({"roots": 0}, "--roots 0"),
        ({"roots": 3}, "--roots 3"),
        ({"nx_pages": -1}, "--nx-pages -1"),
        ({"nx_pages": 99}, "--nx-pages 99: 3 levels of 2 entries hold only 4 huge pages"),
        ({"legacy": 5}, "--legacy 5"),
        ({"nx_pages": 3, "legacy": 2}, "--nx-pages 3 and --legacy 2"),
        ({"gfns": 0}, "--gfns 0: at least 1"),
        ({"gfns": 9}, "--gfns 9: 3 levels of 2 entries map only 8 gfns"),
        ({"gfns": 65, "levels": 5, "fanout": 8}, "--gfns 65: at most 64"),
        ({"faults": -1}, "--faults -1"),
        ({"faults": 10**9}, "--faults 1000000000: at most 100"),
        ({"flush": "none"}, "--flush none: bare-metal or ranged"),
        ({"format": "pae"}, "--format pae: npt or ept"),
        ({"resched": "never"}, "--resched never: any or contended"),
        ({"victim": "nobody"}, "--victim nobody: tdp or legacy"),
        ({"victim": "legacy", "legacy": 0}, "--victim legacy: there is no legacy page"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=r"^--") as refused:
        NxRecovery(**parameters).build(KERNELS["5.12"])
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("roots", [1, 2])
def test_a_range_of_parameters_can_be_built(kernel: str, levels: int, roots: int) -> None:
    for fanout in (2, 4):
        for vcpus in (0, 1, 3):
            for legacy in (0, 1):
                for spte_format in ("npt", "ept"):
                    scenario = NxRecovery(
                        levels=levels,
                        fanout=fanout,
                        roots=roots,
                        vcpus=vcpus,
                        legacy=legacy,
                        format=spte_format,
                        flush="ranged" if legacy else "bare-metal",
                    )
                    built = scenario.build(KERNELS[kernel])
                    names = [thread.name for thread in built.machine.threads]
                    assert names == [
                        "nx recovery",
                        "host",
                        *(f"vCPU{n}" for n in range(vcpus)),
                        "teardown",
                    ]


def test_without_an_unmap_there_is_no_host() -> None:
    built = TINY.build(KERNELS["5.12"])
    assert [thread.name for thread in built.machine.threads] == ["nx recovery", "vCPU0", "teardown"]


def test_what_must_happen_follows_the_parameters() -> None:
    always = {"a page is recovered", "a guest access goes through"}
    assert set(replace(TINY, nx_pages=0, vcpus=0).sometimes()) == always
    assert "the host reuses a page" in NxRecovery().sometimes()
    assert "the host reuses a page" not in TINY.sometimes()
    assert "a fault is retried" not in NxRecovery(victim="legacy").sometimes()


@pytest.mark.parametrize("nothing", [{"vcpus": 0}, {"faults": 0}])
def test_where_nothing_is_accessed_nothing_is_said(nothing: dict[str, int]) -> None:
    """5.12-rc4 breaks harm and discipline here as soon as somebody accesses memory."""
    scenario = replace(TINY, unmap=True, **nothing)
    verdict = ask(Question(scenario, KERNELS["5.12-rc4"], "5.12-rc4"))
    assert verdict.status in (VACUOUS, VIOLATED)
    verdict = ask(Question(scenario, KERNELS["5.12"], "5.12"))
    assert verdict.status == VACUOUS
    assert "never happens that a guest access goes through" in verdict.sentence()


# --- the table of the thread ---


def test_rows_are_told_apart_by_what_is_printed() -> None:
    keys = [(row.kernel, row.patches, row.configuration()) for row in rows()]
    assert len(set(keys)) == len(keys)


def test_rows_ask_different_questions_that_can_be_built() -> None:
    table = rows()
    assert len({(row.kernel, row.patches, row.scenario) for row in table}) == len(table)
    for row in table:
        assert row.expected in (None, HOLDS, VIOLATED)
        assert row.question().build().machine.threads


# --- vacuity ---


@dataclass(frozen=True, slots=True)
class Vain(NxRecovery):
    """Asks for what never happens."""

    name: ClassVar[str] = "vain"

    def sometimes(self) -> dict[str, Callable[[Any, Any], bool]]:
        return {"pigs fly": lambda event, step: False}


def vain() -> Vain:
    return Vain(levels=2, roots=1, legacy=0, gfns=1, unmap=False)


def test_a_holds_in_which_nothing_happened_is_vacuous() -> None:
    verdict = ask(Question(vain(), KERNELS["5.12"], "5.12"))
    assert verdict.status == VACUOUS
    assert verdict.exploration.unseen == ("pigs fly",)
    assert verdict.sentence().startswith("vacuous")
    assert "pigs fly" in verdict.sentence()
    assert "holds" not in verdict.sentence()
    assert EXIT_CODES[verdict.status] == 4


def test_a_search_cut_short_is_not_vacuous_but_unfinished() -> None:
    verdict = ask(Question(NxRecovery(), KERNELS["6.18"], "6.18"), budget=Budget(states=100))
    assert verdict.status == "budget"
    assert "holds" not in verdict.sentence()


def test_the_same_scenario_without_that_wish_holds() -> None:
    assert ask(Question(TINY, KERNELS["5.12"], "5.12")).status == HOLDS


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"huge_level": 0}, "huge_level must be 1 to 5, not 0"),
        ({"pages": 0}, "pages must be 1 to 1000, not 0"),
        ({"levels": 5, "fanout": 512}, "levels 5, fanout 512: 35,184,372,088,832 gfns; at most"),
        ({"format": "shadow"}, "format shadow: npt or ept"),
        ({"cr3": "nan"}, "cr3 'nan': there is no shadowN thread"),
        ({"mmu_pages": -1}, "mmu_pages must be 0 to 1000, not -1"),
        ({"flush": "none"}, "flush none: bare-metal or ranged"),
        ({"slots": "0-9"}, "slot 0-9: the last gfn is 3"),
        ({"slots": "0-1@3"}, "slot 0-1: the host pages are 0 to 3"),
        ({"slots": "0-1@-1"}, "slot 0-1: the host pages are 0 to 3"),
        ({"slots": "2/0-1"}, "slot '2/0-1': the address spaces are 0 and 1"),
        ({"slots": "0-1 1-2"}, "slot 1-2 overlaps another"),
        ({"setup": "r0", "levels": 4, "pages": 1}, "setup 'r0': it takes more than twice 1 page"),
        ({"threads": "shadow0: r0", "tables": "9: 0 1"}, "guest table 9: the last gfn is 3"),
        ({"threads": "vcpu0: w0 unload w0"}, "vcpu0: nothing can come after 'unload'"),
        ({"threads": "vcpu0: unload:1"}, "step 'unload:1': it takes no arguments"),
        ({"threads": "host: zap-range:1-0"}, "'zap-range:1-0': gfns 1-0: the last comes before"),
        ({"threads": "vcpu0: invlpg:0"}, "only a vCPU that pages (shadowN) can do this"),
        ({"threads": "shadow0: prefault:0", "tables": "2: 0"}, "KVM prefaults with TDP only"),
        ({"threads": "user: slot-create:2-4"}, "slot 2-4: the last gfn is 3"),
        ({"threads": "user: set-period:-1"}, "period -1: milliseconds, from 0"),
    ],
)
def test_a_script_that_makes_no_sense_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        Script(**changed).build(kernel_class("6.12"))
    assert "\n" not in str(refused.value)


def slots_after(threads: str, slots: str, kernel: str) -> list[tuple[int, int]]:
    """The memslots that there are when the first thread, alone, is through: gfns."""
    script = Script(threads=threads, slots=slots)
    world = World(Question(script, kernel_class(kernel), kernel))
    while world.threads[0].alternatives:
        world.move(0)
    assert world.threads[0].op is None
    kvm = script.build(kernel_class(kernel)).kvm
    cell = kvm.memslots[0]
    return [(slot.base_gfn, slot.end - 1) for slot in world.state[cell.chunk][cell.offset].slots]


@pytest.mark.parametrize("kernel", ["5.12", "6.1", "6.12", "6.18"])
def test_slots_are_not_put_over_each_other(kernel: str) -> None:
    assert slots_after("user: slot-create:1-2", "0-1", kernel) == [(0, 1)]
    assert slots_after("user: slot-create:2-3", "0-1", kernel) == [(0, 1), (2, 3)]
    assert slots_after("user: slot-move:0>1", "0-1 2-3", kernel) == [(0, 1), (2, 3)]
    assert slots_after("user: slot-move:0>3", "0-1", kernel) == [(0, 1)]
    assert slots_after("user: slot-move:0>1", "0-1", kernel) == [(1, 2)]
