"""All workers' parts as one search, for whoever looks at the whole graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.loop import CompiledLoop
from tdpmmu.worlds.explore.parallel import kernels as k
from tdpmmu.worlds.explore.parallel.numbering import Numbering
from tdpmmu.worlds.explore.parallel.worker import Part, intern_places, intern_shared
from tdpmmu.worlds.explore.turn import Turn, Turns


class NumberedPositions:
    """One thread's positions by everybody's numbers."""

    def __init__(self, numbering: Numbering, thread: int) -> None:
        self._numbering = numbering
        self._thread = thread
        self.replays = 0

    def __len__(self) -> int:
        return self._numbering.counts()[self._thread]

    def op(self, number: int) -> Op | None:
        """The pending operation; None if the thread has ended."""
        mine = self._numbering.go_to(self._thread, number)
        return self._numbering.positions[self._thread].op(mine)


class NumberedTurns:
    """Turns by everybody's numbers."""

    def __init__(self, turns: Turns, numbering: Numbering) -> None:
        self._turns = turns
        self._numbering = numbering
        self.unseen = turns.unseen
        self.segments_run = 0

    def take(self, shared: Shared, thread: int, position: int) -> Iterator[Turn]:
        """Every outcome of the thread's next turn."""
        numbering = self._numbering
        here, mine = numbering.shared(shared), numbering.go_to(thread, position)
        for turn in self._turns.take(here, thread, mine):
            after = [numbering.adopt_value(i, value) for i, value in enumerate(turn.shared)]
            end = numbering.adopt_position(thread, turn.position)
            yield replace(turn, shared=tuple(after), position=end)

    def can_move(self, shared: Shared, thread: int, position: int) -> bool:
        """Whether the thread could move from here."""
        numbering = self._numbering
        here, mine = numbering.shared(shared), numbering.go_to(thread, position)
        return self._turns.can_move(here, thread, mine)


def gather(explorer: Explorer, parts: list[Part], states: int, numbering: Numbering) -> None:
    """Put what the workers have into ``explorer``, as the compiled loop would have left it."""
    loop = CompiledLoop(explorer)
    store, known = loop.store, loop.known
    known.ctl[c.SHARED] = 0
    order = np.zeros(states, np.uint64)
    parents = np.zeros(states, np.int64)
    pools = []
    entries = 0
    for part in parts:
        store.make_room_for(int(part.rows.max(initial=0)), 0)
        places = intern_places(store, part.rows.reshape(-1, store.threads))
        shared = intern_shared(known, part.values.reshape(-1, known.chunks))
        inside = part.ranks < states
        mine = part.order[inside]
        ranks = part.ranks[inside]
        order[ranks] = shared[mine >> np.uint64(32)].astype(np.uint64) << np.uint64(32)
        order[ranks] |= places[mine & np.uint64(0xFFFFFFFF)].astype(np.uint64)
        parents[ranks] = part.parents[inside]
        moved = np.empty_like(part.pool)
        entries += int(k.move_pool(part.pool, shared, moved))
        pools.append(moved)
    children = np.bincount(parents[1:], minlength=states)
    ctl = store.ctl
    ctl[c.COUNT] = ctl[c.CURRENT] = states
    ctl[c.ENTRIES] = entries
    pool = np.concatenate(pools)
    ctl[c.USED] = len(pool)
    count = int(ctl[c.PLACES])
    store.restore(order, children, store.rows[: count * store.threads].copy())
    count = int(ctl[c.SHARED])
    known.restore(known.values[: count * known.chunks].copy(), known.hashes[:count].copy(), pool)
    explorer.compiled = loop
    loop._show()
    turns = explorer.turns
    explorer.turns = NumberedTurns(turns, numbering)  # type: ignore[assignment]
    explorer.positions = [
        NumberedPositions(numbering, thread)  # type: ignore[misc]
        for thread in range(len(explorer.machine.threads))
    ]
