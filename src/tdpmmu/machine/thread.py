"""Threads of a machine: a name, the CPU they run on, and the coroutine they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import Ghost
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Layout, State


@dataclass(frozen=True, slots=True)
class Thread:
    """``start()`` makes a fresh coroutine, again and again if need be: it must be deterministic.

    An ``alone`` thread starts when all others have ended, so nobody sees it at work.
    """

    name: str
    start: Callable[[], Coroutine[Any, Any, Any]]
    alone: bool = False


@dataclass(slots=True)
class Machine:
    """Cells, threads and ghosts: all that a world needs to run something.

    ``sometimes`` is what some run must show, or the scenario proves nothing.  ``prologue`` is what
    happened before the first state.
    """

    layout: Layout
    threads: list[Thread]
    ghosts: list[Ghost] = field(default_factory=list)
    initial: State = ()
    sometimes: dict[str, Callable[[Event, Step], bool]] = field(default_factory=dict)
    prologue: tuple[Event, ...] = ()

    def listeners(self) -> dict[type[Event], list[Ghost]]:
        """Which ghosts hear which event."""
        table: dict[type[Event], list[Ghost]] = {}
        for ghost in self.ghosts:
            for kind in ghost.hears:
                table.setdefault(kind, []).append(ghost)
        return table
