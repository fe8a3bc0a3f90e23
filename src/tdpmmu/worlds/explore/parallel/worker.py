"""One worker's search, level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tdpmmu.machine.ghost import HARM
from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.learner import Learner
from tdpmmu.worlds.explore.memory import most_resident
from tdpmmu.worlds.explore.parallel import kernels as k
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.parallel.peers import Peers
from tdpmmu.worlds.explore.parallel.speech import Listener, News, Speaker
from tdpmmu.worlds.explore.parallel.store import Store
from tdpmmu.worlds.explore.turn import Turn

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.engine import Explorer

CANDIDATES = 1 << 14
"""Successors in one level for which there is room at first."""

LAST = 1 << 60
"""That everybody waits is found when all else of a state has been looked at."""


class Moment(NamedTuple):
    """When one loop would have come across something: in which state, and what was before."""

    state: int
    nth: int


class Report(NamedTuple):
    """A property broken by a turn from state ``when.state``, or by nobody's (``thread`` < 0)."""

    when: Moment
    prop: str
    kind: str
    sentence: str
    thread: int
    alternatives: tuple[int, ...]


@dataclass(slots=True)
class Outgoing:
    """What one worker sends another after a level: where its turns led, and what that means.

    ``trouble``: code that failed in a way that is no verdict, and when.
    """

    keys: Words
    shared: Words
    places: Words
    new_shared: Words
    new_places: Words
    news: News
    nested: list[tuple[str, str]]
    trouble: tuple[Moment, Exception] | None
    stop: bool


@dataclass(slots=True)
class Level:
    """What a worker tells of a level that is done."""

    depth: int
    states: int
    transitions: int
    found: list[Report]
    seen: dict[str, Moment]
    more: bool
    cut: int
    memory: float
    segments: int


@dataclass(slots=True)
class Decision:
    """What the workers are told after a level.  ``cut``: the last state that counts, or -1."""

    reported: set[str]
    stop: bool
    cut: int


@dataclass(slots=True)
class Part:
    """A worker's part of the graph, when all is done, in its own numbers.

    ``new``, ``turns``: how many states the last level has, and how many turns lead there, from
    states up to the one at which one loop would have stopped.
    """

    order: Words
    ranks: Words
    parents: Words
    rows: Words
    values: Words
    pool: Words
    news: News
    new: int
    turns: int


class Worker:
    """Owns the states whose shared state hashes to its number."""

    def __init__(
        self,
        explorer: Explorer,
        peers: Peers,
        constants: Constants,
        stop: Callable[[], bool],
    ) -> None:
        self.explorer = explorer
        self.peers = peers
        self.constants = constants
        self.stop = stop
        machine = explorer.machine
        threads = len(machine.threads)
        ctl = np.zeros(c.FIELDS, np.int64)
        ctl[c.THREADS] = threads
        self.store = Store(ctl, 1 << 14)
        self.known = Known(ctl, len(machine.initial))
        self.learner = Learner(ctl, explorer)
        self.speaker = Speaker(explorer.positions, explorer.chunks, constants)
        self.listeners = [
            Listener(explorer.positions, explorer.chunks, constants) for _ in range(len(peers))
        ]
        lanes = [t for t, one in enumerate(machine.threads) if not one.alone]
        alone = [t for t, one in enumerate(machine.threads) if one.alone]
        self.lanes, self.alone = np.array(lanes, np.int64), np.array(alone, np.int64)
        self.steps = np.zeros(3, np.int64)
        self.ranks: Words = np.zeros(len(self.store.order), np.uint32)
        self.parents: Words = np.zeros(len(self.store.order), np.uint32)
        self.owners: Words = np.zeros(0, np.int64)
        self.weights = [np.zeros(0, np.uint64) for _ in machine.initial]
        self.candidates: Words = np.zeros((3, CANDIDATES), np.int64)
        self.new_keys: Words = np.zeros(0, np.int64)
        self.sent_shared: Words = np.zeros(0, np.uint32)
        self.sent_places: list[Words] = [np.zeros(0, np.uint32) for _ in range(len(peers))]
        self.next_shared = [0] * len(peers)
        self.next_places = [0] * len(peers)
        self.shared_of: list[Words] = [np.zeros(0, np.int64) for _ in range(len(peers))]
        self.places_of: list[Words] = [np.zeros(0, np.int64) for _ in range(len(peers))]
        self.told_places = 0
        self.told_nesting: set[tuple[str, str]] = set()
        self.found: list[Report] = []
        self.seen: dict[str, Moment] = {}
        self.begin = self.states = self.depth = self.nth = 0
        self.cut = -1
        explorer._report = self._report  # type: ignore[method-assign]

    def load(self) -> None:
        """Have all compiled code loaded: done before there are workers, it is done once."""
        nothing = np.zeros(0, np.int64)
        store = self.store
        self.learner.tell()
        self._expand_to(0, nothing)
        k.renumber(nothing, np.zeros(0, np.uint32), nothing, 0)
        k.insert(
            store.ctl, store.order, store.slots, nothing, store.order[:0], nothing, nothing, nothing
        )
        intern_places(store, np.zeros((0, store.threads), np.uint32))
        intern_shared(self.known, np.zeros((0, self.known.chunks), np.uint32))

    # --- the search -------------------------------------------------------------------------------

    def run(self, settle: Callable[[Level], Decision]) -> bool:
        """Search until nothing is left or ``settle`` says so; it is told of every level.

        False if it was stopped in the middle of a level.
        """
        self._start()
        while True:
            level = self._level()
            if level is None:
                return False
            decision = settle(level)
            if decision.stop or not level.more:
                self.cut = decision.cut
                return True
            self.explorer.reported |= decision.reported
            self.learner.tell()

    def _start(self) -> None:
        self.learner.tell()
        initial = np.zeros((1, self.known.chunks), np.uint32)
        number = int(intern_shared(self.known, initial)[0])
        self.states = 1
        if self._owner()[number] == self.peers.number:
            store = self.store
            row = [table.initial for table in self.explorer.positions]
            places = intern_places(store, np.array([row], np.uint32))
            states = np.array([number << 32 | int(places[0])], np.uint64)
            heads, ends = np.zeros(1, np.int64), np.ones(1, np.int64)
            new = np.zeros(1, np.int64)
            k.insert(store.ctl, store.order, store.slots, new, states, heads, ends, new.copy())

    def _owner(self) -> Words:
        """To whom each shared state belongs: all workers agree, whatever its number."""
        known = self.known
        done, count = len(self.owners), int(known.ctl[c.SHARED])
        rows = known.values[done * known.chunks : count * known.chunks].reshape(-1, known.chunks)
        total = np.zeros(len(rows), np.uint64)
        for chunk, values in enumerate(self.explorer.chunks._values):
            weights = self.weights[chunk]
            if len(weights) < len(values):
                more = [self.constants.weight(chunk, one) for one in values[len(weights) :]]
                weights = self.weights[chunk] = np.append(weights, np.array(more, np.uint64))
            total += weights[rows[:, chunk]]
        mine = (total >> np.uint64(7)) % np.uint64(len(self.peers))
        self.owners = np.append(self.owners, mine.astype(np.int64))
        return self.owners

    def _level(self) -> Level | None:
        end = int(self.store.ctl[c.COUNT])
        halted = np.zeros(end - self.begin, np.int64)
        trouble = None
        try:
            self._expand_to(end, halted)
            self._judge(halted[: self.steps[k.LEFT]].tolist())
        except Exception as error:
            trouble = (self._now(), error)
        transitions = int(self.steps[k.FOUND])
        parts = self.peers.exchange(self._outgoing(transitions, trouble))
        troubles = [part.trouble for part in parts if part.trouble is not None]
        if troubles:
            raise min(troubles, key=lambda one: one[0])[1]
        if parts[0].stop:
            return None
        self._learn_nesting(parts)
        self._insert(parts)
        return self._rank(end, transitions)

    def _now(self) -> Moment:
        number = min(int(self.steps[k.AT]), len(self.ranks) - 1)
        self.nth += 1
        return Moment(int(self.ranks[number]), self.nth)

    def _expand_to(self, end: int, halted: Words) -> None:
        store, steps = self.store, self.steps
        steps[k.AT], steps[k.LEFT], steps[k.FOUND] = self.begin, 0, 0
        while True:
            code = k.expand(
                store.ctl,
                self.known.table(),
                self.learner.learnt(),
                self.learner.work,
                store.order,
                store.rows,
                store.row_slots,
                self.lanes,
                self.alone,
                steps,
                end,
                self.ranks,
                self.candidates,
                halted,
            )
            if code == c.MADE:
                return
            if code in (c.ASK, c.MISSED_OPERATION, c.MISSED_ORDER):
                self._fill(code)
            else:
                self._grow(code)

    def _grow(self, code: int) -> None:
        if code == k.ENOUGH:
            wider = np.zeros((3, 2 * self.candidates.shape[1]), np.int64)
            wider[:, : self.candidates.shape[1]] = self.candidates
            self.candidates = wider
        elif code == c.FULL_STATES:
            self.store.grow_states()
            self.ranks = _longer(self.ranks, len(self.store.order))
            self.parents = _longer(self.parents, len(self.store.order))
        else:
            {
                c.FULL_PLACES: self.store.grow_places,
                c.FULL_SHARED: self.known.grow_shared,
                c.FULL_ENTRIES: self.known.grow_entries,
                c.FULL_FACTS: self.learner.grow_facts,
                c.FULL_WAYS: self.learner.grow_scratch,
            }[code]()

    # --- the threads' code ------------------------------------------------------------------------

    def _fill(self, code: int) -> None:
        """Run the thread's own code for a look-up that missed."""
        ctl, learner = self.store.ctl, self.learner
        unseen = self.explorer.turns.acts.unseen
        before = list(unseen)
        thread = int(ctl[c.MISSED_THREAD])
        start = int(ctl[c.MISSED_START])
        shared = self.known.shared(int(ctl[c.MISSED_SHARED]))
        if code == c.ASK:
            self.learner.ask(thread, shared, start)
        elif code == c.MISSED_ORDER:
            learner.order(thread, start, list(shared))
        else:
            position, row = int(ctl[c.MISSED_POSITION]), learner.work.bench.row.tolist()
            after, idle = bool(ctl[c.MISSED_AFTER]), int(ctl[c.MISSED_IDLE])
            learner.walk(thread, position, row, after, idle)
        for label in before:
            if label not in unseen:
                self.seen[label] = self._now()
        self._tell()

    def _tell(self) -> None:
        self.learner.tell()
        self.store.make_room_for(max(map(len, self.explorer.positions)))

    def _report(self, prop: str, kind: str, sentence: str, current: int, turn: Turn | None) -> None:
        """What a turn breaks: of each property the first, which is one loop's if others agree."""
        if prop in self.explorer.reported:
            return
        self.explorer.reported.add(prop)
        thread, alternatives = (-1, ()) if turn is None else (turn.thread, turn.alternatives)
        self.found.append(Report(self._now(), prop, kind, sentence, thread, alternatives))

    def _judge(self, halted: list[int]) -> None:
        """Whether everybody waits in one of the states from which nobody moves."""
        for number in halted:
            if "deadlock" in self.explorer.reported:
                return
            sentence = self._deadlock(number)
            if sentence:
                when = Moment(int(self.ranks[number]), LAST)
                self.found.append(Report(when, "deadlock", HARM, sentence, -1, ()))
                self.explorer.reported.add("deadlock")

    def _deadlock(self, number: int) -> str:
        explorer = self.explorer
        shared_number, positions = self.store.state(number)
        shared = self.known.shared(shared_number)
        threads = explorer.machine.threads
        ops = [table.op(at) for table, at in zip(explorer.positions, positions, strict=True)]
        late = all(op is None or one.alone for op, one in zip(ops, threads, strict=True))
        waiting = [
            (thread, op)
            for thread, op in enumerate(ops)
            if op is not None and (late or not threads[thread].alone)
        ]
        if any(explorer.turns.can_move(shared, t, positions[t]) for t, _ in waiting):
            return ""  # a harm cut the search off here
        who = "; ".join(f"{threads[t].name} at {op.describe()}" for t, op in waiting)
        return f"everybody waits: {who}" if waiting else ""

    def _learn_nesting(self, parts: list[Outgoing]) -> None:
        acts = self.explorer.turns.acts
        order = self.explorer.machine.layout.lock_order
        if not order.trusted:
            return
        for outer, inner in [pair for part in parts for pair in part.nested]:
            acts.inside.setdefault(outer, set()).add(inner)
            if acts.leads(inner, outer):
                raise Mistrust(order.name)

    # --- from one level to the next ---------------------------------------------------------------

    def _outgoing(self, count: int, trouble: tuple[Moment, Exception] | None) -> list[Outgoing]:
        """Candidates by the worker who owns them, with the rows that it does not know yet."""
        store, known = self.store, self.known
        keys, shared, places = self.candidates[:, :count]
        owners = self._owner()[shared]
        self.sent_shared = _longer(self.sent_shared, len(known.hashes))
        fresh = np.zeros(count, np.int64)
        table = known.values.reshape(-1, known.chunks)
        rows = store.rows.reshape(-1, store.threads)
        news = self.speaker.news(rows[self.told_places : int(store.ctl[c.PLACES])])
        self.told_places = int(store.ctl[c.PLACES])
        inside = self.explorer.turns.acts.inside
        nesting = {(outer, inner) for outer, those in inside.items() for inner in those}
        nested, self.told_nesting = sorted(nesting - self.told_nesting), nesting
        stop = self.peers.number == 0 and self.stop()
        parts = []
        for worker in range(len(self.peers)):
            these = owners == worker
            mine = (keys[these], shared[these], places[these])
            new_shared, new_places = table[:0], rows[:0]
            if worker != self.peers.number:
                new = k.renumber(mine[1], self.sent_shared, fresh, self.next_shared[worker])
                self.next_shared[worker] += int(new)
                new_shared = table[fresh[:new]]
                sent = _longer(self.sent_places[worker], len(rows))
                self.sent_places[worker] = sent
                new = k.renumber(mine[2], sent, fresh, self.next_places[worker])
                self.next_places[worker] += int(new)
                new_places = rows[fresh[:new]]
            parts.append(Outgoing(*mine, new_shared, new_places, news, nested, trouble, stop))
        return parts

    def _insert(self, parts: list[Outgoing]) -> None:
        store = self.store
        keys, states = [], []
        for worker, part in enumerate(parts):
            shared, places = part.shared, part.places
            if worker != self.peers.number:
                listener = self.listeners[worker]
                listener.hear(part.news)
                self._tell()
                self.shared_of[worker] = np.append(
                    self.shared_of[worker],
                    intern_shared(self.known, listener.shared(part.new_shared)),
                )
                self.places_of[worker] = np.append(
                    self.places_of[worker],
                    intern_places(store, listener.places(part.new_places)),
                )
                shared = self.shared_of[worker][shared]
                places = self.places_of[worker][places]
            keys.append(part.keys)
            states.append(shared.astype(np.uint64) << np.uint64(32) | places.astype(np.uint64))
        ends = np.cumsum([len(one) for one in keys])
        heads = np.concatenate(([0], ends[:-1])).astype(np.int64)
        all_keys, all_states = np.concatenate(keys), np.concatenate(states)
        new_keys = np.empty(len(all_keys), np.int64)
        done = 0
        while True:
            code, new = k.insert(
                store.ctl,
                store.order,
                store.slots,
                all_keys,
                all_states,
                heads,
                ends,
                new_keys[done:],
            )
            done += int(new)
            if code == c.MADE:
                break
            self._grow(code)
        self.new_keys = new_keys[:done]

    def _rank(self, begin: int, transitions: int) -> Level:
        """Number the new states as one loop would have."""
        mine = self.new_keys
        all_keys: list[Any] = self.peers.tell(mine)
        numbers = np.arange(len(mine), dtype=np.int64) + self.states
        for worker, theirs in enumerate(all_keys):
            if worker != self.peers.number:
                numbers += np.searchsorted(theirs, mine)
        end = begin + len(mine)
        self.ranks[begin:end] = numbers
        self.parents[begin:end] = mine >> k.TURN_BITS
        new = sum(map(len, all_keys))
        most = self.explorer.budget.states
        cut = -1
        if most and self.states + new > most:
            cut = int(np.sort(np.concatenate(all_keys))[max(most - self.states, 0)])
            cut >>= k.TURN_BITS
        self.begin = begin
        self.states += new
        found, self.found = self.found, []
        seen, self.seen = self.seen, {}
        level = Level(
            self.depth,
            len(mine),
            transitions,
            found,
            seen,
            new > 0,
            cut,
            most_resident() / 2**20,
            self.explorer.turns.segments_run,
        )
        self.depth += 1
        return level

    # --- the end ----------------------------------------------------------------------------------

    def part(self) -> Part:
        """What it has, for whoever looks at the whole graph."""
        store, known = self.store, self.known
        count = int(store.ctl[c.COUNT])
        rows = store.rows[: int(store.ctl[c.PLACES]) * store.threads]
        pool = known.pool[: int(store.ctl[c.USED])]
        parents = self.new_keys >> k.TURN_BITS
        keys = self.candidates[0, : int(self.steps[k.FOUND])] >> k.TURN_BITS
        if self.cut >= 0:
            parents, keys = parents[parents <= self.cut], keys[keys <= self.cut]
        explorer = self.explorer
        ends = np.zeros((store.threads, max(map(len, explorer.positions))), np.bool_)
        k.mark_ends(pool, ends)
        for thread, column in enumerate(rows.reshape(-1, store.threads).T):
            ends[thread, column] = True
        speaker = Speaker(explorer.positions, explorer.chunks, self.constants)
        return Part(
            store.order[:count],
            self.ranks[:count],
            self.parents[:count],
            rows,
            known.values[: int(store.ctl[c.SHARED]) * known.chunks],
            pool,
            speaker.everything(ends),
            len(parents),
            len(keys),
        )


def intern_shared(known: Known, rows: Words) -> Words:
    """The numbers of shared states."""
    while int(known.ctl[c.SHARED]) + len(rows) + 1 >= len(known.hashes):
        known.grow_shared()
    numbers = np.zeros(len(rows), np.int64)
    flat = np.ascontiguousarray(rows, np.uint32).ravel()
    k.intern_rows(known.ctl, known.values, known.hashes, known.shared_slots, flat, numbers)
    return numbers


def intern_places(store: Store, rows: Words) -> Words:
    """The numbers of rows of places."""
    count = int(store.ctl[c.PLACES]) + len(rows)
    while count > min(len(store.rows) // store.threads, len(store.row_slots) // 5 * 4):
        store.grow_places()
    numbers = np.zeros(len(rows), np.int64)
    flat = np.ascontiguousarray(rows, np.uint32).ravel()
    k.intern_places(store.ctl, store.rows, store.row_slots, flat, numbers)
    return numbers


def _longer(array: Words, length: int) -> Words:
    if len(array) >= length:
        return array
    longer = np.zeros(length, array.dtype)
    longer[: len(array)] = array
    return longer
