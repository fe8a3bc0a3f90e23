"""Whether two machines can be told apart by what they show.

What shows: changes of SPTEs, page tables linked, zapped and freed, flushes completed, guest
accesses and faults, pages recovered, taken back or leaked, warnings.  What does not: locks, RCU
and requests, which are means.  First the two graphs of states are walked side by side; where
turns match one to one they are equal (bisimilar).  Where they do not, sets of states that show
the same so far are compared, breadth first, until one side shows what the other cannot: the
shortest run that tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tdpmmu.events.records import (
    Event,
    FaultFixed,
    FlushCompleted,
    GuestAccess,
    HostPageReused,
    NxPageRecovered,
    PageFreed,
    PageLinked,
    PageZapped,
    SpteChanged,
    TornDown,
    Warned,
)
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.turn import Turn

SHOWN = (
    FaultFixed,
    FlushCompleted,
    GuestAccess,
    HostPageReused,
    NxPageRecovered,
    PageFreed,
    PageLinked,
    PageZapped,
    SpteChanged,
    TornDown,
    Warned,
)

Label = tuple[str, Event | str]
"""A thread's name, and an event or the name of a property it breaks."""

Node = tuple[int, tuple[Label, ...]]
"""A global state, and what is still to be shown before it is reached."""

Pair = tuple[frozenset[Node], frozenset[Node]]
"""What either side may have come to by the same run."""

EQUAL, DIFFERENT, UNKNOWN = "equal", "different", "unknown"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answer; for "different" the run, of which the last label only ``shown_by`` can show."""

    answer: str
    run: tuple[Label, ...] = ()
    shown_by: str = ""
    pairs: int = 0


class _Graph:
    """One machine's graph with what its turns show."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.start = explorer.order[0]
        self._edges: dict[int, list[tuple[tuple[Label, ...], int]]] = {}

    def _labels(self, thread: int, turn: Turn) -> tuple[Label, ...]:
        name = self.explorer.machine.threads[thread].name
        shown: list[Label] = [(name, event) for event in turn.events if isinstance(event, SHOWN)]
        shown += [(name, ghost.name) for ghost, _ in turn.violations]
        return tuple(shown)

    def edges(self, key: int) -> list[tuple[tuple[Label, ...], int]]:
        """What each turn from a state shows, and where it leads."""
        found = self._edges.get(key)
        if found is None:
            found = self._edges[key] = list(self._find(key))
        return found

    def _find(self, key: int) -> Iterator[tuple[tuple[Label, ...], int]]:
        explorer = self.explorer
        number, positions = explorer.unpack(key)
        shared = explorer.shared[number]
        threads = {thread for thread, _, _ in explorer.successors(key)}
        for thread in sorted(threads):
            for turn in explorer.turns.take(shared, thread, positions[thread]):
                after = positions.copy()
                after[thread] = turn.position
                successor = explorer.intern(turn.shared) << explorer.shift
                for i, position in enumerate(after):
                    successor |= position << explorer.bits * i
                yield self._labels(thread, turn), successor

    def closure(self, nodes: frozenset[Node]) -> frozenset[Node]:
        """All nodes that are reached without showing anything."""
        seen = set(nodes)
        todo = list(nodes)
        while todo:
            key, rest = todo.pop()
            if rest:
                continue
            for labels, successor in self.edges(key):
                node = (successor, labels)
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        return frozenset(node for node in seen if node[1])

    def moves(self, nodes: frozenset[Node]) -> dict[Label, frozenset[Node]]:
        """What can be shown next, and where that leads."""
        table: dict[Label, set[Node]] = {}
        for key, rest in self.closure(nodes):
            table.setdefault(rest[0], set()).add((key, rest[1:]))
        return {label: frozenset(after) for label, after in table.items()}


def _bisimilar(a: _Graph, b: _Graph) -> bool:
    """Whether turns match one to one all the way: a quick, sufficient test."""
    pairs = {a.start: b.start}
    todo = [a.start]
    while todo:
        key = todo.pop()
        ours, theirs = a.edges(key), b.edges(pairs[key])
        if [labels for labels, _ in ours] != [labels for labels, _ in theirs]:
            return False
        for (_, x), (_, y) in zip(ours, theirs, strict=True):
            known = pairs.get(x)
            if known is None:
                pairs[x] = y
                todo.append(x)
            elif known != y:
                return False
    return True


def compare(one: Explorer, other: Explorer, limit: int = 50_000) -> Comparison:
    """Compare two exhausted searches; ``limit`` is how many pairs of sets are looked at."""
    a, b = _Graph(one), _Graph(other)
    if _bisimilar(a, b):
        return Comparison(EQUAL, pairs=len(one.order))
    start: Pair = (frozenset([(a.start, ())]), frozenset([(b.start, ())]))
    came: dict[Pair, tuple[Pair, Label] | None] = {start: None}
    todo = [start]
    for pair in todo:
        ours, theirs = a.moves(pair[0]), b.moves(pair[1])
        for label in (*ours, *(label for label in theirs if label not in ours)):
            if label in ours and label in theirs:
                after = (ours[label], theirs[label])
                if after not in came:
                    came[after] = (pair, label)
                    todo.append(after)
                continue
            run = [label]
            at = came[pair]
            while at is not None:
                run.append(at[1])
                at = came[at[0]]
            shown_by = "first" if label in ours else "second"
            return Comparison(DIFFERENT, tuple(reversed(run)), shown_by, len(came))
        if len(came) > limit:
            return Comparison(UNKNOWN, pairs=len(came))
    return Comparison(EQUAL, pairs=len(came))
