"""All workers' parts as one search, for whoever looks at the whole graph."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.loop import CompiledLoop
from tdpmmu.worlds.explore.parallel import kernels as k
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.parallel.speech import Listener
from tdpmmu.worlds.explore.parallel.worker import Part, intern_places, intern_shared


def gather(explorer: Explorer, parts: list[Part], states: int, constants: Constants) -> None:
    """Put what the workers have into ``explorer``, as the compiled loop would have left it."""
    loop = CompiledLoop(explorer)
    store, known = loop.store, loop.known
    order = np.zeros(states, np.uint64)
    parents = np.zeros(states, np.int64)
    pools = []
    entries = 0
    for part in parts:
        listener = Listener(explorer.positions, explorer.chunks, constants)
        listener.hear(part.news)
        store.make_room_for(max(map(len, explorer.positions)), 0)
        places = intern_places(store, listener.places(part.rows.reshape(-1, store.threads)))
        rows = listener.shared(part.values.reshape(-1, known.chunks))
        shared = intern_shared(known, rows)
        inside = part.ranks < states
        mine, ranks = part.order[inside], part.ranks[inside]
        order[ranks] = shared[mine >> np.uint64(32)].astype(np.uint64) << np.uint64(32)
        order[ranks] |= places[mine & np.uint64(0xFFFFFFFF)].astype(np.uint64)
        parents[ranks] = part.parents[inside]
        tables = listener.positions()
        numbers = np.zeros((len(tables), max(map(len, tables))), np.int64)
        for thread, table in enumerate(tables):
            numbers[thread, : len(table)] = table
        moved = np.empty_like(part.pool)
        entries += int(k.move_pool(part.pool, shared, numbers, moved))
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
