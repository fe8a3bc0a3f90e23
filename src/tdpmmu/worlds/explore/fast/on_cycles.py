"""Which turns may lie on a cycle without progress, or of urgent turns, once a search has ended.

The walks over arrays are compiled: :mod:`~tdpmmu.worlds.explore.fast.cycles`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import cycles as cy
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.fairness import COLUMNS, HEAD, TAIL

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

EDGE_BYTES = 600
"""What looking for cycles takes for each turn that may be on one."""


def local_turns(loop: CompiledLoop, *, urgent: bool) -> Words:
    """The turns (without progress, or else urgent) that are on cycles of shared states, and on
    cycles of positions.
    """
    known, ctl = loop.known, loop.store.ctl
    places = np.cumsum([0] + [len(table) for table in loop.explorer.positions])
    edges: Words = cy.local_edges(known.pool, ctl[c.USED], places, urgent)
    settled = 0
    while edges.shape[1] and settled < 2:
        for nodes, row in ((int(ctl[c.SHARED]), 1), (int(places[-1]), 3)):
            of = cy.components(nodes, edges[row], edges[row + 1])
            kept = of[edges[row]] == of[edges[row + 1]]
            settled = settled + 1 if kept.all() else 0
            edges = np.ascontiguousarray(edges[:, kept])
    return edges


def marks(loop: CompiledLoop) -> Words | None:
    """Where in the pool the turns are that may be on a cycle without progress; None if none may."""
    known = loop.known
    turns = local_turns(loop, urgent=False)
    if not turns.shape[1]:
        return None
    marked = np.zeros(len(known.pool), np.uint8)
    cy.mark(known.pool, known.ctl[c.USED], turns[0], marked)
    return marked


def marked_edges(loop: CompiledLoop, marked: Words, first: int, *, hashed: bool) -> Words:
    """Those turns of the states that were searched, from state ``first`` on, as rows.

    See :func:`~tdpmmu.worlds.explore.fast.cycles.marked_edges`; ``hashed`` where states have no
    numbers.  MemoryError if there are more than the budget has memory for.
    """
    most = max(0, loop.memory_left()) // EDGE_BYTES
    found: Words = cy.marked_edges(
        loop.store.ctl,
        loop.store.packed(),
        loop.known.places,
        loop.known.pool,
        np.array([one.alone for one in loop.explorer.machine.threads]),
        marked,
        first,
        hashed,
        most,
    )
    if len(found) >= most:
        raise MemoryError
    return found


def edges(loop: CompiledLoop) -> Words:
    """Rows for turns that may be on a cycle without progress; none if all lead on."""
    marked = marks(loop)
    if marked is None:
        return np.empty((0, len(COLUMNS)), np.int64)
    found = marked_edges(loop, marked, 0, hashed=False)
    return found if (found[:, HEAD] <= found[:, TAIL]).any() else found[:0]
