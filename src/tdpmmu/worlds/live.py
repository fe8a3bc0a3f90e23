"""The live world: calls into the MMU run on one memory that changes in place.

Nothing is explored and no state is kept: whoever drives the calls decides which goes on, operation
by operation.  It is for real geometry, where a state is too large to copy, and for memory whose
cells are made as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import Cell

Memory = list[list[Any]]
"""Values by chunk and offset (``Layout.memory``)."""

Choice = Callable[[Op, int], int]
"""Picks an alternative of an operation that has several."""


class LiveStep(Step):
    """A step that writes through; what only the explorer asks for is not kept."""

    __slots__ = ("memory",)

    def __init__(self, memory: Memory, thread: int) -> None:
        super().__init__((), thread)
        self.memory = memory

    def __getitem__(self, cell: Cell) -> Any:
        return self.memory[cell.chunk][cell.offset]

    def __setitem__(self, cell: Cell, value: Any) -> None:
        self.memory[cell.chunk][cell.offset] = value

    def emit(self, event: Event) -> None:
        self.events.append(event)


class LiveCall:
    """One call into the MMU, by the thread of that number, on its way.

    ``op`` is the operation it stands at, None at its end.
    """

    def __init__(
        self, body: Coroutine[Op, Any, Any], memory: Memory, thread: int, choose: Choice
    ) -> None:
        self.thread = thread
        self.step = LiveStep(memory, thread)
        self.result: Any = None
        self._body = body
        self._choose = choose
        self.op: Op | None = None
        self._send(None)

    @property
    def done(self) -> bool:
        """It has returned; ``result`` is what."""
        return self.op is None

    def blocked(self) -> bool:
        """It waits for something that another call has to bring about."""
        return self.op is not None and self.op.alternatives(self.step) == 0

    def go(self) -> Op:
        """Do the operation it stands at, which must not be blocked, and say which it was."""
        op = self.op
        assert op is not None
        alternatives = op.alternatives(self.step)
        chosen = self._choose(op, alternatives) if alternatives > 1 else 0
        self._send(op.apply(self.step, chosen))
        return op

    def answer(self, result: Any) -> None:
        """Go on as if the operation it stands at had been done, and this were its result."""
        self._send(result)

    def events(self) -> list[Event]:
        """What it has emitted since this was last asked."""
        events = self.step.events
        self.step.events = []
        self.step.nested.clear()
        self.step.broken.clear()
        return events

    def close(self) -> None:
        """Drop it where it stands."""
        self._body.close()
        self.op = None

    def _send(self, result: Any) -> None:
        try:
            self.op = self._body.send(result)
        except StopIteration as stop:
            self.op = None
            self.result = stop.value
