"""Which cycles without progress cannot go on for ever, told from all of them at once.

The first question of :meth:`tdpmmu.worlds.explore.progress.Part.fair`, where the table has the
answer: most parts of a graph end there, and there may be many thousands.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.cycles import components

COLUMNS = THREAD, TAIL, HEAD, MOVERS, HASH = range(5)
"""Columns of :func:`~tdpmmu.worlds.explore.fast.cycles.marked_edges`."""


def perhaps_fair(edges: Words) -> Words:
    """The edges, in their order, of parts in which each thread moves or must wait somewhere.

    All edges that lead on from a state of such a part are among those given.
    """
    states, places = np.unique(edges[:, (TAIL, HEAD)], return_inverse=True)
    places = places.reshape(len(edges), 2)
    of = components(len(states), places[:, 0], places[:, 1])
    part = of[places[:, 0]]
    inside = np.flatnonzero(part == of[places[:, 1]])
    if not len(inside):
        return edges[:0]
    by_part = inside[np.argsort(part[inside], kind="stable")]
    begins = np.flatnonzero(np.diff(part[by_part], prepend=-1))
    always = np.bitwise_and.reduceat(edges[by_part, MOVERS], begins)
    move = np.bitwise_or.reduceat(np.int64(1) << edges[by_part, THREAD], begins)
    fair = part[by_part[begins[always & ~move == 0]]]
    return edges[inside[np.isin(part[inside], fair)]]
