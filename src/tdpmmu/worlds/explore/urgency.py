"""Urgent turns put all other threads off, so there must be no way round of urgent turns alone.

Looked for when a search has seen everything; if there is one the search starts again without.  A
cycle of global states is also a closed walk among the shared states, and one among the positions of
each thread: it is enough that there are no such walks of urgent turns.
"""

from __future__ import annotations

from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.graph import POSITION_BITS
from tdpmmu.worlds.explore.progress import components
from tdpmmu.worlds.explore.reductions import URGENT


def check_urgency(explorer: Explorer) -> None:
    """Mistrust if urgent turns may put others off for ever."""
    urgency = explorer.machine.layout.urgency
    if not explorer.result.ended or URGENT not in explorer.turns.reduce:
        return
    if urgency.trusted and _may_go_round(explorer):
        urgency.trusted = False
        raise Mistrust(urgency.name)


def _may_go_round(explorer: Explorer) -> bool:
    if explorer.compiled is not None:
        return explorer.compiled.urgent_turns_go_round()
    bits, mask, shift = POSITION_BITS, explorer._mask, explorer.shift
    edges: list[tuple[int, int, int, int]] = []
    base = 0
    for thread, table in enumerate(explorer._tables):
        lane = bits * thread
        for lookup, entry in table.items():
            if type(entry) is not list:
                continue
            number, position = lookup >> bits, lookup & mask
            here = number << shift | position << lane
            for delta in entry:
                after = (here + delta) >> lane & mask
                edges.append((number, (here + delta) >> shift, base + position, base + after))
        base += len(explorer.positions[thread])
    settled = 0
    while edges and settled < 2:
        for nodes, tail in ((len(explorer.shared), 0), (base, 2)):
            of = components(nodes, [e[tail] for e in edges], [e[tail + 1] for e in edges])
            kept = [e for e in edges if of[e[tail]] == of[e[tail + 1]]]
            settled = settled + 1 if len(kept) == len(edges) else 0
            edges = kept
    return bool(edges)
