"""What each condition of the compiled loop is for: a program in which it matters.

The conditions of the reduction are there twice, in plain Python (``test_reduction_conditions.py``)
and in compiled code.  Here that code runs in Python, with one condition changed, and must not find
what the plain loop finds, bit by bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
from telling import GO_ROUND, PROGRAMS
from test_each_reduction import Flip
from toys import Said, make_machine, written

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import DISCIPLINE, HARM, Ghost
from tdpmmu.machine.op import BOTH, LEFT, RIGHT, Choose, Op, Read, Step, WaitUntil, Write
from tdpmmu.machine.state import Cell, Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.search import COMPILED, PLAIN, explore

pytest.importorskip("numba")

from plainly import Plainly
from test_compiled import same

from tdpmmu.worlds.explore.fast import compose, kernels

# --- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moves(Op):
    """Nothing, but it moves in some way."""

    how: str

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return self.how


@dataclass(frozen=True, slots=True)
class OfVcpu(Op):
    """Nothing, by a vCPU."""

    vcpu: int

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return BOTH


def meet(one: Op, other: Op, then: Op, last: Callable[[Cell], Op]) -> Callable[[], Machine]:
    """Two ways that come to one point: by one operation or the other, and the same ones then."""

    def make() -> Machine:
        layout = Layout()
        x = layout.cell("x", 0)

        async def chooses() -> None:
            a = await Choose("?", (0, 1))
            await (one if a else other)
            a = 0
            for _ in range(8):
                await then
            await last(x)

        async def writes() -> None:
            await Write(x, 1)

        return make_machine(layout, [chooses, writes])

    return make


@dataclass(frozen=True, slots=True)
class Sends(Op):
    """A vCPU's write, when nobody can tell if it is ``urgent``; it waits for ``when``, if any."""

    vcpu: int
    cell: Cell
    value: int
    is_urgent: bool = False
    when: Cell | None = None

    def alternatives(self, step: Step) -> int:
        return 1 if self.when is None or step[self.when] else 0

    def apply(self, step: Step, alternative: int) -> None:
        step[self.cell] = self.value

    def urgent(self, step: Step) -> bool:
        return self.is_urgent


@dataclass(frozen=True, slots=True)
class Awaits(Op):
    """A vCPU waits for a cell, which one thread alone can change, if there is a ``rival``."""

    vcpu: int
    cell: Cell
    rival: int | None

    def alternatives(self, step: Step) -> int:
        return 1 if step[self.cell] else 0

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def waits_for_kick(self, step: Step) -> int | None:
        return self.rival


@dataclass(frozen=True, slots=True)
class Fails(Op):
    """It must not be done while a cell is set."""

    cell: Cell

    def apply(self, step: Step, alternative: int) -> None:
        assert not step[self.cell], "set"

    def mover(self, step: Step) -> str:
        return BOTH


class Moody(Ghost):
    """Nobody speaks in a mood."""

    name = "moody"
    kind = DISCIPLINE
    meaning = "nobody speaks in a mood"
    hears: ClassVar[tuple[type[Event], ...]] = (Said,)

    def __init__(self, mood: Cell) -> None:
        super().__init__()
        self.mood = mood

    def observe(self, step: Step, event: Event) -> None:
        if step[self.mood]:
            step.violate(self, f"mood {step[self.mood]}")


@dataclass(frozen=True, slots=True)
class Tells(Op):
    """Says some words, each in some mood: one of several such tales."""

    mood: Cell
    tales: tuple[tuple[tuple[int, int], ...], ...]

    def alternatives(self, step: Step) -> int:
        return len(self.tales)

    def apply(self, step: Step, alternative: int) -> None:
        for word, mood in self.tales[alternative]:
            step[self.mood] = mood
            step.emit(Said(word))
        step[self.mood] = 0

    def mover(self, step: Step) -> str:
        return BOTH


def tells(*tales: tuple[tuple[int, int], ...]) -> Callable[[], Machine]:
    """Somebody who tells one of these, and others before and after it; moods have been reported."""

    def make() -> Machine:
        layout = Layout()
        x, mood = layout.cell("x", 0), layout.cell("mood", 0)

        async def once() -> None:
            await Tells(mood, (((1, 3),),))

        async def again() -> None:
            await Tells(mood, (((7, 0), (8, 4)),))
            await Tells(mood, tales)
            await Tells(mood, (((9, 0), (9, 5)),))
            for _ in range(8):
                await Moves(BOTH)
            await Write(x, 1)

        return make_machine(layout, [once, again], ghosts=[Moody(mood)])

    return make


Body = Callable[[Cell, Cell, Cell], list[Op]]


def lists(*bodies: Body, alone: Sequence[Body] = ()) -> Callable[[], Machine]:
    """Threads that do some operations on three cells, whatever comes of them."""

    def make() -> Machine:
        layout = Layout()
        cells = [layout.cell(name, 0) for name in "xyz"]

        async def run(body: Body) -> None:
            for op in body(*cells):
                await op

        threads, late = ([lambda one=one: run(one) for one in some] for some in (bodies, alone))
        return make_machine(layout, threads, alone=late)

    return make


OWN: dict[str, Callable[[], Machine]] = {
    "one way is seen": meet(Moves(LEFT), Moves(BOTH), Moves(BOTH), Read),
    "one way chooses only": meet(
        Choose("!", (0,)), Moves(RIGHT), Choose("!", (0,)), lambda x: WaitUntil(x, 1)
    ),
    "an operation fails": lists(
        lambda x, y, z: [Write(x, 1), Write(x, 0), Fails(x), Write(y, 1)],
        lambda x, y, z: [Moves(BOTH), Fails(x), Fails(z), Read(y)],
    ),
    "harm is done twice": written(
        *["await Write(x, 1); await Say(0); await rw.held_for_write(); await Write(y, 1)"] * 2,
        ghost=("then", HARM, "x", 1),
    ).build,
    "harm is done before a choice": written(
        *["await Write(x, 1); await Say(0); a = await Choose('?', (0, 1)); await Write(y, 1)"] * 2,
        ghost=("then", HARM, "x", 1),
    ).build,
    "a breach is heard twice": written(
        *["await Write(x, 1); await Say(0); await rw.held_for_write(); await Write(y, 1)"] * 2,
        ghost=("then", DISCIPLINE, "x", 1),
    ).build,
    "two moves that wait": lists(
        lambda x, y, z: [Flip(x, 1, 2), Flip(x, 2, 3), Write(y, 1)],
        lambda x, y, z: [Write(x, 1), Read(y), Write(z, 1)],
    ),
    "a turn of many segments": lists(
        lambda x, y, z: [*[Moves(BOTH)] * 20, Write(x, 1), *[Moves(LEFT)] * 20, Read(y)],
        lambda x, y, z: [*[Moves(RIGHT)] * 20, Write(y, 1), *[Choose("?", (0, 1))] * 4, Read(x)],
    ),
    "the same tale": tells(((1, 1), (2, 2)), ((1, 1), (2, 2))),
    "nothing or nothing": tells((), ()),
    "something or nothing": tells(((1, 0),), ()),
    "words in another order": tells(((1, 0), (2, 0)), ((2, 0), (1, 0))),
    "moods in another order": tells(((1, 1), (1, 2)), ((1, 2), (1, 1))),
    "another first word": tells(((1, 0), (2, 0)), ((3, 0), (2, 0))),
    "another last word": tells(((1, 0), (2, 0)), ((1, 0), (3, 0))),
    "another first mood": tells(((1, 1), (1, 2)), ((1, 3), (1, 2))),
    "another last mood": tells(((1, 1), (1, 2)), ((1, 1), (1, 3))),
    "three tales": tells(((1, 1),), ((2, 2),), ((1, 1),)),
    "a rival": lists(
        lambda x, y, z: [Awaits(0, x, 1), Write(y, 1)],
        lambda x, y, z: [Write(z, 1), Write(x, 1)],
        lambda x, y, z: [Write(z, 2), Read(y)],
    ),
    "a rival who has ended": lists(
        lambda x, y, z: [Awaits(0, x, 1)],
        lambda x, y, z: [Write(z, 1)],
        lambda x, y, z: [Write(y, 2)],
    ),
    "nobody alone is awaited": lists(
        lambda x, y, z: [Awaits(0, x, None), Write(y, 1)],
        lambda x, y, z: [Write(x, 1)],
        lambda x, y, z: [Write(y, 2)],
    ),
    "a vcpu in a hurry": lists(
        lambda x, y, z: [Sends(0, x, 1, True), Sends(0, x, 2, True), Write(x, 3)],
        lambda x, y, z: [Read(x), Write(y, 1)],
    ),
    "a vcpu that is not": lists(
        lambda x, y, z: [Sends(0, x, 1), Sends(0, x, 2)],
        lambda x, y, z: [Read(x), Write(y, 1)],
    ),
    "a vcpu in a hurry waits": lists(
        lambda x, y, z: [Sends(0, x, 1, True, when=y)],
        lambda x, y, z: [Read(x), Write(z, 1), Write(y, 1), Read(x)],
    ),
    "a vcpu goes on": lists(
        lambda x, y, z: [Moves(RIGHT), Sends(0, x, 1), Moves(LEFT), OfVcpu(0), Write(x, 2)],
        lambda x, y, z: [Read(x), Write(y, 1)],
    ),
    "those alone": lists(
        lambda x, y, z: [Write(x, 1)],
        lambda x, y, z: [Read(x), Moves(BOTH)],
        alone=[
            lambda x, y, z: [Moves(BOTH), Choose("?", (0, 1)), Write(x, 3), Awaits(0, x, 0)],
            lambda x, y, z: [Sends(0, y, 1, True), Sends(0, z, 1, True), Awaits(0, z, 0)],
        ],
    ),
    "those alone wait for ever": lists(
        lambda x, y, z: [Write(x, 1)],
        lambda x, y, z: [Write(x, 2)],
        alone=[lambda x, y, z: [Read(x), Awaits(0, y, 0)]],
    ),
}

MACHINES = PROGRAMS | GO_ROUND | OWN


@cache
def plain(name: str) -> Explorer:
    """What the plain loop finds."""
    found = explore(MACHINES[name](), loop=PLAIN)
    check_progress(found)
    return found


def compare(name: str, monkeypatch: pytest.MonkeyPatch, make: Plainly) -> None:
    """Search by the compiled loop's code in Python."""
    monkeypatch.setattr(kernels, "advance", make(kernels.advance))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of hashes
        found = explore(MACHINES[name](), loop=COMPILED)
    check_progress(found)
    same(plain(name), found)


@pytest.mark.parametrize("name", MACHINES)
def test_the_same_in_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, monkeypatch, Plainly())


# --- one condition taken away ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Without:
    """A compiled function with a piece of its source replaced, and the program that must notice."""

    program: str
    function: Any
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.function.py_func.__name__}: {self.new or f'no {self.old}'}"


CHANGES = [
    Without("one way is seen", compose._visited, "(AFTER | IDLE)", "IDLE"),
    Without("one way chooses only", compose._visited, "(AFTER | IDLE)", "AFTER"),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_would_be_wrong(change: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly = Plainly((change.function, change.old, change.new))
    with pytest.raises(AssertionError):
        compare(change.program, monkeypatch, plainly)
