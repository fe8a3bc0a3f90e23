"""Steps that are taken back: what some code would do, without doing it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.state import Cell
from tdpmmu.simulation.tables import EntryCell
from tdpmmu.worlds.live import LiveStep, Memory


class Rehearsal(LiveStep):
    """A step that can be taken back."""

    __slots__ = ("counts", "undo")

    def __init__(self, memory: Memory, thread: int) -> None:
        super().__init__(memory, thread)
        self.undo: list[tuple[Cell, Any]] = []
        self.counts: Counter[str] = Counter()

    def __setitem__(self, cell: Cell, value: Any) -> None:
        self.undo.append((cell, self[cell]))
        super().__setitem__(cell, value)

    def emit(self, event: Event) -> None:
        self.counts[event.__class__.__name__] += 1

    def touch(self, cell: Cell, write: bool) -> None:
        """Neither lifetimes nor guards are looked at."""

    def take_back(self) -> dict[tuple[int, int], int]:
        """All is as it was; the last values of the entries that had been changed, by row."""
        last: dict[tuple[int, int], int] = {}
        for cell, old in reversed(self.undo):
            if isinstance(cell, EntryCell):
                last.setdefault((cell.page.number, cell.index), self[cell])
            super().__setitem__(cell, old)
        return last
