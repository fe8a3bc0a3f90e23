"""Locks, RCU and grace periods of one state: who is inside, and who waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tdpmmu.kernel.locks import NOBODY, RwLock
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Cell, Layout, State
from tdpmmu.render.report.rows import BUSY, IDLE, PLAIN, Row


class SyncView:
    """The locks and RCU domains of one VM; ``threads`` are all threads' names, by number."""

    def __init__(self, layout: Layout, threads: Sequence[str]) -> None:
        self._locks = layout.locks
        self._threads = threads
        self._rcu = [
            (cell.name.removesuffix(".nesting"), cell, _callbacks(layout, cell))
            for cell in layout.cells
            if cell.name in ("rcu.nesting", "srcu.nesting")
        ]

    def rows(self, state: State) -> Iterator[Row]:
        """One row for each, whether it is free or not."""
        step = Step(state, 0)
        for lock in self._locks:
            text = self._holders(step, lock)
            queue = step[lock.waiters] if isinstance(lock, RwLock) else ()
            note = ", ".join(f"{self._threads[who]} waits for {mode}" for who, mode in queue)
            yield Row(lock.name, 0, lock.name, text or "free", BUSY if text else IDLE, note)
        for name, nesting, callbacks in self._rcu:
            inside = [self._threads[i] for i, depth in enumerate(step[nesting]) if depth]
            text = ", ".join(inside)
            kind = BUSY if text else IDLE
            yield Row(name, 0, f"{name} readers", text or "nobody", kind)
            for callback, mask in step[callbacks]:
                yield self._pending(name, callback, mask)

    def _holders(self, step: Step, lock: Any) -> str:
        if not isinstance(lock, RwLock):
            owner = step[lock.owner]
            return "" if owner == NOBODY else self._threads[owner]
        if step[lock.writer] != NOBODY:
            return f"{self._threads[step[lock.writer]]} (write)"
        return ", ".join(f"{name} (read)" for name in self._in(step[lock.readers]))

    def _in(self, mask: int) -> list[str]:
        return [name for i, name in enumerate(self._threads) if mask >> i & 1]

    def _pending(self, name: str, callback: Any, mask: int) -> Row:
        whom = ", ".join(self._in(mask))
        if isinstance(callback, int):
            what = f"{self._threads[callback]} waits for {whom}"
        else:
            what = (
                f"{callback!r} is freed once {whom} {'is' if mask.bit_count() == 1 else 'are'} out"
            )
        return Row(f"{name} {callback!r}", 1, "pending", what, PLAIN)


def _callbacks(layout: Layout, nesting: Cell) -> Cell:
    name = nesting.name.removesuffix("nesting") + "callbacks"
    return next(cell for cell in layout.cells if cell.name == name)
