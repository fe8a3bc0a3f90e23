"""What is found is the same without any one of the reductions, and without all.

A part of the zoo that is small without them, and random programs; ``benchmarks/reductions.py`` does
the same with all of the zoo and more programs.  Programs are without RCU, which reductions make
tame (see ``test_explorer.py``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from toys import CHOICES, LOCKING, PLAIN, NeverThen, Say, make_machine, random_program

from tdpmmu.machine.op import BOTH, LEFT, Op, Step, Write
from tdpmmu.machine.state import Cell, Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import ask
from tdpmmu.scenarios.token import decode, reproduce
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, MOVERS, NONE, URGENT, named
from tdpmmu.worlds.explore.search import LOOPS, explore

WITHOUT_ONE = tuple(ALL - {one} for one in sorted(ALL))


def broken(explorer: Explorer) -> set[str]:
    return {found.prop for found in explorer.result.violations}


# --- the zoo --------------------------------------------------------------------------------------

SMALL = ("z12", "z15a", "z15b", "z16", "z19", "z40", "z47", "z49", "z55", "z63")
MOST = Budget(states=1_800)


@pytest.mark.parametrize("side", [BUG, FIXED])
@pytest.mark.parametrize("name", SMALL)
def test_zoo(name: str, side: str) -> None:
    asked = question(name, side)
    found = explore(asked.build().machine, reduce=ALL)
    check_progress(found)
    compared = 0
    for reduce in (*WITHOUT_ONE, NONE):
        other = explore(asked.build().machine, reduce=reduce, budget=MOST)
        check_progress(other)
        if other.result.exhausted:
            assert broken(other) == broken(found), sorted(reduce)
            assert other.result.unseen == found.result.unseen, sorted(reduce)
            compared += 1
    assert compared >= 2


def test_who_gives_up_an_invalid_root_on_the_way_out() -> None:
    """Nothing is usable between VM exit and ``mode = OUTSIDE``, which the reduction leaves out."""
    found = explore(question("z26", FIXED).build().machine, reduce=NONE)
    assert found.result.exhausted
    assert broken(found) == set()


@pytest.mark.parametrize("reduce", [*WITHOUT_ONE, NONE], ids=["without one"] * 4 + ["without any"])
def test_tokens_replay(reduce: frozenset[str]) -> None:
    found = ask(question("z63", BUG), reduce=reduce)
    assert found.tokens
    for token in found.tokens.values():
        assert reproduce(decode(token)) is not None


# --- random programs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "least"),
    [
        (PLAIN, {"never-then": 4, "lockdep": 8}),
        (CHOICES, {"deadlock": 10, "never-then": 2}),
        (LOCKING, {"deadlock": 5, "lockdep": 15}),
    ],
    ids=["plain", "choices", "locking"],
)
def test_random_programs(kinds: tuple[str, ...], least: dict[str, int]) -> None:
    met: Counter[str] = Counter()
    for seed in range(5000, 5080):
        program = random_program(seed, kinds)
        expected = broken(explore(program.build(), reduce=NONE))
        met.update(expected)
        for reduce in (ALL, *WITHOUT_ONE):
            assert broken(explore(program.build(), reduce=reduce)) == expected, program
    for prop, count in least.items():
        assert met[prop] >= count, f"too few programs break {prop}: the test says little"


# --- urgent turns ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flip(Op):
    """Change a cell at which nobody else looks, as soon as that is possible."""

    cell: Cell
    old: int
    new: int

    def alternatives(self, step: Step) -> int:
        return 1 if step[self.cell] == self.old else 0

    def apply(self, step: Step, alternative: int) -> None:
        step[self.cell] = self.new

    def mover(self, step: Step) -> str:
        return LEFT


@dataclass(frozen=True, slots=True)
class Idle(Op):
    """Do nothing."""

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return BOTH


def says_it(layout: Layout) -> tuple[NeverThen, object]:
    """A thread that says something while it must not, and the property."""
    y = layout.cell("y", 0)

    async def body() -> None:
        await Write(y, 1)
        await Say(0)

    return NeverThen(y, 1), body


def flipping() -> Machine:
    """Two threads whose turns are urgent for ever, one after the other."""
    layout = Layout()
    x = layout.cell("x", 0)

    async def flip(old: int, new: int) -> None:
        while True:
            await Flip(x, old, new)

    ghost, body = says_it(layout)
    threads = [lambda: flip(0, 1), lambda: flip(1, 0), body]
    return make_machine(layout, threads, ghosts=[ghost])  # type: ignore[arg-type]


def idling() -> Machine:
    """A thread that goes round within one turn."""
    layout = Layout()

    async def idle() -> None:
        while True:
            await Idle()

    ghost, body = says_it(layout)
    return make_machine(layout, [idle, body], ghosts=[ghost])  # type: ignore[list-item]


@pytest.mark.parametrize("loop", LOOPS[1:])
def test_urgent_turns_that_put_others_off_for_ever(loop: str) -> None:
    found = explore(flipping(), loop=loop, reduce=ALL)
    assert broken(found) == {"never-then"}
    assert found.result.mistrusted == ("what nobody can see comes to an end",)
    assert explore(flipping(), loop=loop, reduce=ALL - {URGENT}).result.mistrusted == ()


@pytest.mark.parametrize("loop", LOOPS[1:])
def test_a_turn_that_goes_round_is_not_urgent(loop: str) -> None:
    found = explore(idling(), loop=loop, reduce=ALL)
    assert broken(found) == {"never-then"}
    assert found.result.mistrusted == ()


def test_two_threads_see_that_urgent_turns_go_round() -> None:
    found = explore(flipping(), workers=2, loop="compiled", reduce=ALL)
    assert broken(found) == {"never-then"}
    assert found.result.mistrusted == ("what nobody can see comes to an end",)


# --- which ----------------------------------------------------------------------------------------


def test_names() -> None:
    assert (named("all"), named("none")) == (ALL, NONE)
    assert named("movers, urgent") == frozenset({MOVERS, URGENT})
    with pytest.raises(ValueError, match="begin, movers, urgent, waits; not 'symmetry'"):
        named("movers,symmetry")


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_leaves_something_out(name: str) -> None:
    asked = question("z1", FIXED)
    states = [
        ask(asked, reduce=reduce, budget=Budget(states=60_000)).exploration.states
        for reduce in (ALL, ALL - {name})
    ]
    assert states[0] <= states[1]
    if name != "waits":
        assert states[0] < states[1]
