"""What each condition of the compiled loop is for: a program in which it matters.

The conditions of the reduction are there twice, in plain Python (``test_reduction_conditions.py``)
and in compiled code.  Here that code runs in Python, with one condition changed, and must not find
what the plain loop finds, bit by bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from telling import GO_ROUND, PROGRAMS
from toys import make_machine

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


OWN: dict[str, Callable[[], Machine]] = {
    "one way is seen": meet(Moves(LEFT), Moves(BOTH), Moves(BOTH), Read),
    "one way chooses only": meet(
        Choose("!", (0,)), Moves(RIGHT), Choose("!", (0,)), lambda x: WaitUntil(x, 1)
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
