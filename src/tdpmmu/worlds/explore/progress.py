"""Forward progress: is there a way round for ever on which nobody gets on?

Called when a search has seen everything.  What is looked for is a cycle of turns without a progress
event that is *weakly fair*: a thread which could move all along the cycle does move.  Such a cycle
lies in a strongly connected part of the graph without its progress edges, and a part holds one
exactly if every thread either moves inside the part or cannot move in one of its states: the walk
that visits everything in the part is then fair.  Locks are fairer than that: a thread in line for
one is not passed for ever (qrwlock and qspinlock are queues), so where one waits, turns that take
the lock are on no cycle.

Most edges can be told to be on no cycle without looking at a single global state.  A cycle of
global states is also a closed walk among the shared states, and one among the positions of each
thread.  Those graphs are small (the explorer's tables, not their product): they are thinned first.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from os.path import basename

from tdpmmu.events.records import LockTaken
from tdpmmu.machine.ghost import HARM
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Counterexample
from tdpmmu.worlds.explore.graph import POSITION_BITS
from tdpmmu.worlds.explore.turn import Turn

NAME = "no-progress"

NOT_EXHAUSTED = "not checked: search not exhausted"

VISITED = "checked for the states visited"

NO_MEMORY = "not checked: the budget of memory is used up"

Edge = tuple[int, int, int]
"""A turn between two global states, by number: ``(thread, from, to)``."""


def check_progress(explorer: Explorer) -> str:
    """Look for a fair cycle without progress; report the one that is reached soonest.

    The result, also put into ``explorer.result.liveness``, is ``"checked"`` or why not.  Ctrl-C
    while it looks is one in the search: that is not exhausted, then.
    """
    result = explorer.result
    if not result.ended:
        result.liveness = NOT_EXHAUSTED
        return result.liveness
    try:
        _report_cycle(explorer)
    except MemoryError:
        result.liveness = NO_MEMORY
        if result.exhausted:
            result.exhausted = False
            result.stopped = "no memory is left to look for cycles without progress"
    except KeyboardInterrupt:
        result.liveness = NOT_EXHAUSTED
        result.exhausted, result.stopped = False, INTERRUPTED
    else:
        result.liveness = "checked" if result.exhausted else VISITED
    return result.liveness


def _report_cycle(explorer: Explorer) -> None:
    if explorer.compiled is not None:
        edges = explorer.compiled.edges_to_look_at()
    else:
        edges = edges_on_cycles(explorer)
    for part in _parts(edges):
        fair = part.fair(explorer)
        if fair is not None:
            explorer.report(fair.counterexample(explorer))
            break


def edges_on_cycles(explorer: Explorer) -> list[Edge]:
    """Turns that may lie on a cycle without progress, or none if none leads back."""
    return _edges(explorer, _on_local_cycles(explorer))


# --- strongly connected parts ---------------------------------------------------------------------


def components(count: int, tails: Sequence[int], heads: Sequence[int]) -> array[int]:
    """The strongly connected component of each node ``0 <= n < count`` (Tarjan, without recursion).

    The edges are ``tails[i] -> heads[i]``.
    """
    first = array("q", bytes(8 * (count + 2)))
    for tail in tails:
        first[tail + 2] += 1
    first = array("q", accumulate(first))
    targets = array("q", bytes(8 * len(heads)))
    for tail, head in zip(tails, heads, strict=True):
        targets[first[tail + 1]] = head
        first[tail + 1] += 1
    # Now the edges of node n are targets[first[n]:first[n + 1]].
    component = array("q", [-1]) * count
    low = array("q", bytes(8 * count))  # 0: not met yet
    at = array("q", first[:count])
    met = found = 0
    waiting: list[int] = []
    for root in range(count):
        if low[root] or first[root] == first[root + 1]:
            continue
        met += 1
        low[root] = met
        entered = [root]
        index = [met]
        waiting.append(root)
        while entered:
            node = entered[-1]
            edge = at[node]
            if edge < first[node + 1]:
                at[node] = edge + 1
                head = targets[edge]
                if not low[head]:
                    met += 1
                    low[head] = met
                    entered.append(head)
                    index.append(met)
                    waiting.append(head)
                elif component[head] < 0 and low[head] < low[node]:
                    low[node] = low[head]
                continue
            entered.pop()
            mine = low[node]
            if mine == index.pop():
                while True:
                    member = waiting.pop()
                    component[member] = found
                    if member == node:
                        break
                found += 1
            if entered and component[node] < 0 and mine < low[entered[-1]]:
                low[entered[-1]] = mine
    for node in range(count):
        if component[node] < 0:
            component[node] = found
            found += 1
    return component


# --- which edges can be on a cycle at all ---------------------------------------------------------


def _on_local_cycles(explorer: Explorer) -> list[dict[int, list[int]]]:
    """For each thread, the table entries without what is on no cycle: look-up -> differences."""
    bits, mask, shift = POSITION_BITS, explorer._mask, explorer.shift
    threads: list[int] = []
    lookups: list[int] = []
    deltas: list[int] = []
    shared: tuple[list[int], list[int]] = ([], [])
    places: tuple[list[int], list[int]] = ([], [])
    base = [0]
    for thread, table in enumerate(explorer._tables):
        lane = bits * thread
        flags_of = explorer._progress[thread]
        for lookup, entry in table.items():
            if type(entry) is int or not entry:
                continue
            number, position = lookup >> bits, lookup & mask
            here = number << shift | position << lane
            flags = flags_of.get(lookup, 0)
            for i, delta in enumerate(entry):  # type: ignore[arg-type]
                if flags >> i & 1:
                    continue
                there = here + delta
                threads.append(thread)
                lookups.append(lookup)
                deltas.append(delta)
                shared[0].append(number)
                shared[1].append(there >> shift)
                places[0].append(base[-1] + position)
                places[1].append(base[-1] + (there >> lane & mask))
        base.append(base[-1] + len(explorer.positions[thread]))
    left: Sequence[int] = range(len(deltas))
    graphs = ((len(explorer.shared), shared), (base[-1], places))
    settled = 0
    while left and settled < len(graphs):
        for nodes, (tails, heads) in graphs:
            of = components(nodes, [tails[i] for i in left], [heads[i] for i in left])
            kept = [i for i in left if of[tails[i]] == of[heads[i]]]
            settled = settled + 1 if len(kept) == len(left) else 0
            left = kept
    found: list[dict[int, list[int]]] = [{} for _ in explorer._tables]
    for i in left:
        found[threads[i]].setdefault(lookups[i], []).append(deltas[i])
    return found


def _edges(explorer: Explorer, kept: list[dict[int, list[int]]]) -> list[Edge]:
    """The edges of the searched graph among those kept, or none if none leads back."""
    bits, mask, shift = POSITION_BITS, explorer._mask, explorer.shift
    lanes = [(t, bits * t, turns) for t, turns in enumerate(kept) if turns]
    number_of = explorer.number.get
    found: list[Edge] = []
    back = False
    for number, key in enumerate(explorer.order) if lanes else ():
        shared = key >> shift << bits
        chosen = None
        for thread, lane, turns in lanes:
            deltas = turns.get(shared | key >> lane & mask)
            if deltas is None:
                continue
            if chosen is None:
                chosen = _searched(explorer, key)
            if thread not in chosen:
                continue
            for delta in deltas:
                target = number_of(key + delta)
                if target is not None:
                    found.append((thread, number, target))
                    back = back or target <= number
    return found if back else []


def _searched(explorer: Explorer, key: int) -> Sequence[int]:
    """The threads whose turns the search followed from a state."""
    everybody: list[int] = []
    alone: list[int] = []
    for thread, one in enumerate(explorer.machine.threads):
        if one.alone:
            alone.append(thread)
            continue
        entry = _entry(explorer, thread, key)
        if type(entry) is int:
            return (entry,)
        if type(entry) is list:
            return (thread,)
        if entry:
            everybody.append(thread)
    return everybody or alone


def _entry(explorer: Explorer, thread: int, key: int) -> object:
    bits, mask = POSITION_BITS, explorer._mask
    lookup = key >> explorer.shift << bits | key >> bits * thread & mask
    return explorer._tables[thread].get(lookup)


# --- a part of the graph in which everything can be reached again and again -----------------------


def _parts(edges: list[Edge], free: frozenset[str] = frozenset()) -> Iterable[Part]:
    """The parts that have a cycle, the one that is reached soonest first."""
    small: dict[int, int] = {}
    for _, tail, head in edges:
        small.setdefault(tail, len(small))
        small.setdefault(head, len(small))
    of = components(len(small), [small[e[1]] for e in edges], [small[e[2]] for e in edges])
    parts: dict[int, Part] = {}
    for edge in edges:
        component = of[small[edge[1]]]
        if component == of[small[edge[2]]]:
            part = parts.get(component)
            if part is None:
                part = parts[component] = Part(free)
            part.add(edge)
    return sorted(parts.values(), key=Part.start)


class Part:
    """The edges inside one strongly connected component; nobody takes a lock of ``free`` there."""

    def __init__(self, free: frozenset[str]) -> None:
        self.edges: dict[int, list[Edge]] = {}
        self.movers: set[int] = set()
        self.free = free

    def add(self, edge: Edge) -> None:
        """One more edge inside."""
        self.edges.setdefault(edge[1], []).append(edge)
        self.movers.add(edge[0])

    def start(self) -> int:
        """The state inside that is reached in the fewest turns (the numbers are breadth first)."""
        return min(self.edges)

    def fair(self, explorer: Explorer) -> Part | None:
        """What can go on for ever: all of it, a part of it, or nothing."""
        _, positions = explorer.unpack(explorer.order[self.start()])
        wanted: set[str] = set()
        for thread, position in enumerate(positions):
            if thread in self.movers or explorer.machine.threads[thread].alone:
                continue
            if all(can_move(explorer, thread, state) for state in self.edges):
                return None
            op = explorer.positions[thread].op(position)
            if op is not None and op.waits_in_line_for is not None:
                wanted.add(op.waits_in_line_for)
        free = self.free | wanted
        if free == self.free:
            return self
        edges = [edge for edges in self.edges.values() for edge in edges]
        left = [edge for edge in edges if _turns(explorer, edge, free)]
        if len(left) == len(edges):
            self.free = free
            return self
        inside = (part.fair(explorer) for part in _parts(left, free))
        return next((part for part in inside if part is not None), None)

    def counterexample(self, explorer: Explorer) -> Counterexample:
        """The way to the part, once around in it, and a sentence."""
        start = self.start()
        around = self._around(explorer, start)
        turns = explorer.path(start) + [_turns(explorer, edge, self.free)[0] for edge in around]
        sentence = _sentence(explorer, start, {thread for thread, _, _ in around})
        return Counterexample(NAME, HARM, sentence, turns, start)

    def _around(self, explorer: Explorer, start: int) -> list[Edge]:
        """A closed walk from ``start`` that is fair."""
        threads = range(len(explorer.machine.threads))
        owed = {t for t in threads if can_move(explorer, t, start)}
        walk: list[Edge] = []
        while owed:

            def pays(edge: Edge, owed: set[int] = owed) -> bool:
                return edge[0] in owed or any(not can_move(explorer, t, edge[2]) for t in owed)

            more = self._way(walk[-1][2] if walk else start, pays)
            walk += more
            for thread, _, state in more:
                owed.discard(thread)
                owed = {t for t in owed if can_move(explorer, t, state)}
        if not walk or walk[-1][2] != start:
            walk += self._way(walk[-1][2] if walk else start, lambda edge: edge[2] == start)
        return walk

    def _way(self, start: int, wanted: Callable[[Edge], bool]) -> list[Edge]:
        """The shortest way inside from a state up to an edge that is wanted."""
        came: dict[int, Edge] = {}
        queue = deque([start])
        while queue:
            for edge in self.edges[queue.popleft()]:
                if wanted(edge):
                    way = [edge]
                    while way[-1][1] != start:
                        way.append(came[way[-1][1]])
                    return way[::-1]
                if edge[2] not in came and edge[2] != start:
                    came[edge[2]] = edge
                    queue.append(edge[2])
        raise LookupError("no such edge inside")


def can_move(explorer: Explorer, thread: int, state: int) -> bool:
    """Whether a thread is enabled in a state, with or without progress, by its own table.

    Where the table does not say (the search left the thread alone there, or cut its turns off after
    a harm) the thread is asked.  ``alone`` threads do not count.
    """
    if explorer.machine.threads[thread].alone:
        return False
    key = explorer.order[state]
    entry = _entry(explorer, thread, key)
    if entry and type(entry) is not int:
        return True
    number, positions = explorer.unpack(key)
    return explorer.turns.can_move(explorer.shared[number], thread, positions[thread])


def _turns(explorer: Explorer, edge: Edge, free: frozenset[str]) -> list[Turn]:
    """The turns of an edge, there may be several: without progress, harm or taking those locks."""
    thread, before, after = edge
    number, positions = explorer.unpack(explorer.order[before])
    number_after, positions_after = explorer.unpack(explorer.order[after])
    target = explorer.shared[number_after]
    return [
        turn
        for turn in explorer.turns.take(explorer.shared[number], thread, positions[thread])
        if not turn.progress
        and turn.failure is None
        and turn.position == positions_after[thread]
        and turn.shared == target
        and all(ghost.kind != HARM for ghost, _ in turn.violations)
        and not any(type(event) is LockTaken and event.lock in free for event in turn.events)
    ]


def _sentence(explorer: Explorer, state: int, movers: set[int]) -> str:
    """Who goes round, where, and who waits meanwhile."""
    _, positions = explorer.unpack(explorer.order[state])
    moving: list[str] = []
    waiting: list[str] = []
    for thread, position in enumerate(positions):
        op = explorer.positions[thread].op(position)
        one = explorer.machine.threads[thread]
        if op is None or (one.alone and thread not in movers):
            continue
        # The caller says more than the line inside read_lock() or the like.
        own = type(op).apply.__code__.co_filename
        frames = explorer.positions[thread].line(position)
        function, file, line = next((f for f in reversed(frames) if f[1] != own), frames[-1])
        where = f"{one.name} at {op.describe()} in {function} ({basename(file)}:{line})"
        (moving if thread in movers else waiting).append(where)
    text = "this can go on for ever, and nobody gets on: " + ", ".join(moving)
    return text + ("; waiting: " + ", ".join(waiting) if waiting else "")
