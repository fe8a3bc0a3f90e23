"""Programs in which one condition of the compiled loop matters: they reach what few others do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from test_each_reduction import Flip
from toys import PROGRESS, Said, make_machine, written

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import DISCIPLINE, HARM, Ghost
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Choose, Op, Read, Step, WaitUntil, Write
from tdpmmu.machine.state import Cell, Layout
from tdpmmu.machine.thread import Machine


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


@dataclass(frozen=True, slots=True)
class Puts(Op):
    """Sets a cell to one of some values, which nobody else sees."""

    cell: Cell
    values: tuple[int, ...]

    def alternatives(self, step: Step) -> int:
        return len(self.values)

    def apply(self, step: Step, alternative: int) -> None:
        step[self.cell] = self.values[alternative]

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
    """Says some words, each in some mood, or gets on: one of several such tales."""

    mood: Cell
    tales: tuple[tuple[tuple[int, int], ...], ...]

    def alternatives(self, step: Step) -> int:
        return len(self.tales)

    def apply(self, step: Step, alternative: int) -> None:
        for word, mood in self.tales[alternative]:
            step[self.mood] = mood
            step.emit(Said(word) if word > 0 else PROGRESS)
        step[self.mood] = 0

    def mover(self, step: Step) -> str:
        return BOTH


def tells(*tales: tuple[tuple[int, int], ...], kind: str = DISCIPLINE) -> Callable[[], Machine]:
    """Somebody who tells one of these, and others before and after it; moods have been reported."""

    def make() -> Machine:
        layout = Layout()
        x, mood = layout.cell("x", 0), layout.cell("mood", 0)
        ghost = Moody(mood)
        ghost.kind = kind  # type: ignore[misc]
        other = 4 if kind == DISCIPLINE else 0

        async def once() -> None:
            if kind == HARM:
                await Read(x)
            await Tells(mood, (((1, 3),),))

        async def again() -> None:
            if kind == HARM:
                await Read(x)
            await Tells(mood, (((7, 0), (8, other)),))
            await Tells(mood, tales)
            await Tells(mood, (((9, 0), (9, other)),))
            for _ in range(8):
                await Moves(BOTH)
            await Write(x, 1)

        return make_machine(layout, [once, again], ghosts=[ghost])

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
        lambda x, y, z: [Read(z), Fails(x), Fails(z), Read(y)],
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
    "three ways": lists(
        lambda x, y, z: [Puts(x, (1, 2, 3)), *[Moves(BOTH)] * 8, Write(y, 1)],
        lambda x, y, z: [Read(y)],
    ),
    "three ways and two": lists(
        lambda x, y, z: [Puts(x, (1, 2, 3)), Puts(z, (1, 2)), *[Moves(BOTH)] * 8, Write(y, 1)],
        lambda x, y, z: [Read(y)],
    ),
    "chooses for ever": written("while True: await Choose('?', (0,))", "await Write(x, 1)").build,
    "nearly too long": lists(
        lambda x, y, z: [*[Moves(BOTH)] * 64, Write(y, 1)], lambda x, y, z: [Write(x, 1)]
    ),
    "three choices": written(
        "a = await Choose('?', (0, 1, 2)); for b in range(8): await rw.held_for_write(); b = 0; "
        "await Write(x, a)",
        "b = await Read(x)",
    ).build,
    "one way is seen before": meet(Moves(NEITHER), Moves(LEFT), Moves(BOTH), Read),
    "one tale does harm": tells(((1, 0),), ((2, 2),), kind=HARM),
    "another tale does harm": tells(((2, 2),), ((1, 0),), kind=HARM),
    "one tale gets on": tells(((1, 0),), ((-1, 0),)),
    "never seen": lists(
        lambda x, y, z: [*[Moves(BOTH)] * 100, Write(y, 1)], lambda x, y, z: [Write(x, 1)]
    ),
    "raises": written(
        "a = await Read(x); await rw.held_for_write(); assert not a, 'set'",
        "await Write(x, 1); await Write(x, 0)",
    ).build,
    "raises at once": written("raise RuntimeError('no')", "await Write(x, 1)").build,
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
        lambda x, y, z: [Puts(z, (1, 2)), Write(y, 1)],
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
        alone=[lambda x, y, z: [Read(x), Awaits(0, y, 1)]],
    ),
    "a deadlock before those alone": lists(
        lambda x, y, z: [WaitUntil(x, 1)], alone=[lambda x, y, z: [Write(y, 1)]]
    ),
}
