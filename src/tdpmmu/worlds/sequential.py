"""The sequential world: one thread runs from start to end, nobody comes in between."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import State

Choice = Callable[[Op, int], int]


class Stuck(Exception):
    """The thread waits for something that nobody else is there to bring about."""


def run(
    body: Coroutine[Op, Any, Any],
    state: State,
    thread: int,
    *,
    choose: Choice = lambda op, alternatives: 0,
) -> tuple[State, list[Event]]:
    """Drive one coroutine to its end from ``state``; return the new state and what happened.

    Choices of the world go to ``choose``, which picks the first outcome unless told otherwise.
    """
    step = Step(state, thread)
    result: Any = None
    while True:
        try:
            op = body.send(result)
        except StopIteration:
            return step.state, step.events
        alternatives = op.alternatives(step)
        if alternatives == 0:
            body.close()
            raise Stuck(op.describe())
        result = op.apply(step, choose(op, alternatives))
