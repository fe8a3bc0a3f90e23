"""All workers' parts as one search, for whoever looks at the whole graph."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.loop import CompiledLoop
from tdpmmu.worlds.explore.parallel import kernels as k
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.parallel.speech import Listener
from tdpmmu.worlds.explore.parallel.worker import Part, intern_shared


def gather(explorer: Explorer, parts: list[Part], states: int, constants: Constants) -> None:
    """Put what the workers have into ``explorer``, as the compiled loop would have left it."""
    loop = CompiledLoop(explorer)
    store, known = loop.store, loop.known
    order = np.zeros(states, np.int64)
    rows = np.zeros((states, store.threads), np.int64)
    parents = np.zeros(states, np.int64)
    pools = []
    entries = 0
    for part in parts:
        listener = Listener(explorer.positions, explorer.chunks, constants)
        listener.hear(part.news)
        places = listener.places(part.rows.reshape(-1, store.threads))
        shared = intern_shared(known, listener.shared(part.values.reshape(-1, known.chunks)))
        inside = part.ranks < states
        mine, ranks = part.order[inside], part.ranks[inside]
        order[ranks] = shared[mine >> np.uint64(32)]
        rows[ranks] = places[mine & np.uint64(0xFFFFFFFF)]
        parents[ranks] = part.parents[inside]
        tables = listener.positions()
        numbers = np.zeros((len(tables), max(map(len, tables))), np.int64)
        for thread, table in enumerate(tables):
            numbers[thread, : len(table)] = table
        moved = np.empty_like(part.pool)
        entries += int(k.move_pool(part.pool, shared, numbers, moved))
        pools.append(moved)
    loop.make_room()
    store.fill(order, rows, parents, states)
    ctl = store.ctl
    ctl[c.ENTRIES] = entries
    pool = np.concatenate(pools)
    ctl[c.USED] = len(pool)
    count = int(ctl[c.SHARED])
    known.restore(known.values[: count * known.chunks].copy(), known.hashes[:count].copy(), pool)
    explorer.compiled = loop
    loop._show()
