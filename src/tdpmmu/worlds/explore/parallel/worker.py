"""One worker's search, level by level."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.machine.ghost import HARM
from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.learnt import move_facts
from tdpmmu.worlds.explore.fast.store import Store
from tdpmmu.worlds.explore.parallel import kernels as k
from tdpmmu.worlds.explore.parallel.answers import (
    Answering,
    Answers,
    Moment,
    Question,
    Report,
    read,
)
from tdpmmu.worlds.explore.parallel.facts import FILLED, POSITIONS, KnownFacts
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.parallel.numbering import Numbering, Way
from tdpmmu.worlds.explore.parallel.peers import Peers

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.engine import Explorer

QUESTIONS = 1 << 13
"""Questions in one round."""

CANDIDATES = 1 << 14
"""Successors in one level for which there is room at first."""

DEADLOCK_LANE = 1 << 10
"""That everybody waits is found when all threads were looked at."""


@dataclass(slots=True)
class Level:
    """What a worker tells of a level that is done."""

    depth: int
    states: int
    transitions: int
    found: dict[str, tuple[Moment, Report, tuple[int, ...]]]
    seen: dict[str, Moment]
    more: bool
    cut: int
    memory: float
    busy: float
    segments: int


@dataclass(slots=True)
class Decision:
    """What the workers are told after a level.  ``cut``: the last state that counts, or -1."""

    reported: set[str]
    stop: bool
    cut: int


@dataclass(slots=True)
class Part:
    """A worker's part of the graph, when all is done.

    ``new``, ``turns``: how many states the last level has, and how many turns lead there, from
    states up to the one at which one loop would have stopped.
    """

    order: Words
    ranks: Words
    parents: Words
    rows: Words
    values: Words
    pool: Words
    new: int
    turns: int
    announced: list[tuple[int, bytes]] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)


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
        self.stop = stop
        machine = explorer.machine
        threads = len(machine.threads)
        ctl = np.zeros(c.FIELDS, np.int64)
        ctl[c.THREADS] = threads
        self.store = Store(ctl, 1 << 14)
        self.known = KnownFacts(ctl, len(machine.initial))
        self.numbering = Numbering(explorer.turns, explorer.positions, explorer.chunks, constants)
        self.answering = Answering(explorer.turns, self.numbering, POSITIONS)
        self.steady = np.zeros((threads, POSITIONS), np.bool_)
        self.common = np.zeros((threads, POSITIONS), np.int64)
        for thread, table in enumerate(explorer.positions):
            self.steady[thread, 0] = not hasattr(table.op(table.initial), "vcpu")
        lanes = [t for t, one in enumerate(machine.threads) if not one.alone]
        alone = [t for t, one in enumerate(machine.threads) if one.alone]
        self.lanes, self.alone = np.array(lanes, np.int64), np.array(alone, np.int64)
        self.steps = np.zeros(6, np.int64)
        self.steps[k.WRITTEN] = 1
        self.ranks: Words = np.zeros(len(self.store.order), np.uint32)
        self.parents: Words = np.zeros(len(self.store.order), np.uint32)
        self.questions = np.zeros((QUESTIONS, 4), np.int64)
        self.marks = np.zeros(QUESTIONS, np.uint64)
        self.seen: Words = np.zeros(4 * QUESTIONS, np.uint64)
        self.candidates: Words = np.zeros((3, CANDIDATES), np.int64)
        self.sent_shared: Words = np.zeros(0, np.uint32)
        self.sent_places: list[Words] = [np.zeros(0, np.uint32) for _ in range(len(peers))]
        self.next_shared = [0] * len(peers)
        self.next_places = [0] * len(peers)
        self.shared_of: list[Words] = [np.zeros(0, np.int64) for _ in range(len(peers))]
        self.places_of: list[Words] = [np.zeros(0, np.int64) for _ in range(len(peers))]
        self.reported: set[str] = set()
        self.suspects: list[Report] = []
        self.ticked: dict[str, Moment] = {}
        self.begin = self.states = self.depth = 0
        self.cut = -1
        self.new_keys: Words = np.zeros(0, np.int64)

    # --- arrays -----------------------------------------------------------------------------------

    def _lookups(self) -> tuple[Words, ...]:
        known = self.known
        return (
            known.ctl,
            known.values,
            known.hashes,
            known.shared_slots,
            known.keys,
            known.offsets,
            known.pool,
            known.first_view,
            known.facts,
            known.fact_slots,
        )

    def _grow(self, code: int) -> None:
        if code == c.FULL_SHARED:
            self.known.grow_shared()
        elif code == c.FULL_ENTRIES:
            self.known.grow_entries()
        elif code == c.FULL_PLACES:
            self.store.grow_places()
        elif code == c.FULL_STATES:
            self.store.grow_states()
            self.ranks = _longer(self.ranks, len(self.store.order))
            self.parents = _longer(self.parents, len(self.store.order))
        elif code == k.ENOUGH:
            wider = np.zeros((3, 2 * self.candidates.shape[1]), np.int64)
            wider[:, : self.candidates.shape[1]] = self.candidates
            self.candidates = wider
        else:
            raise AssertionError(f"code {code}")

    def load(self) -> None:
        """Have all compiled code loaded: done before there are workers, it is done once."""
        nothing = np.zeros(0, np.int64)
        store = self.store
        self._find(nothing)
        self._expand_to(0, nothing)
        self._add_facts(nothing)
        move_facts(self.known.facts, self.known.fact_slots, self.known.fact_slots.copy())
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
            if not self._resolve():
                return False
            level = self._expand()
            decision = settle(level)
            if decision.stop or not level.more:
                self.cut = decision.cut
                return True
            self.reported = decision.reported
            self.suspects.clear()

    def _start(self) -> None:
        number = self.known.intern((0,) * self.known.chunks)
        self.states = 1
        if self._owner(np.array([number]))[0] == self.peers.number:
            store = self.store
            places = intern_places(store, np.zeros((1, store.threads), np.uint32))
            states = np.array([number << 32 | int(places[0])], np.uint64)
            heads, ends = np.zeros(1, np.int64), np.ones(1, np.int64)
            new = np.zeros(1, np.int64)
            k.insert(store.ctl, store.order, store.slots, new, states, heads, ends, new.copy())

    def _owner(self, shared: Words) -> Words:
        return (self.known.hashes[shared] >> np.uint64(7)) % np.uint64(len(self.peers))

    def _resolve(self) -> bool:
        """Find out all that is missing in this level; False if it is time to stop."""
        todo = np.arange(self.begin, int(self.store.ctl[c.COUNT]), dtype=np.int64)
        while True:
            todo = self._find(todo)
            stop = self.peers.number == 0 and self.stop()
            asked = self.peers.exchange([(len(todo), stop, part) for part in self._asked()])
            if asked[0][1]:
                return False
            if not any(left for left, _, _ in asked):
                return True
            self._answer([question for _, _, part in asked for question in part])

    def _find(self, todo: Words) -> Words:
        """Note what is missing in these states as questions; the states that lack something."""
        steps = self.steps
        steps[k.AT] = steps[k.LEFT] = steps[k.ASKED] = 0
        self.seen[:] = 0
        while True:
            code = k.resolve(
                *self._lookups(),
                self.store.order,
                self.store.rows,
                self.steady,
                self.common,
                self.lanes,
                self.alone,
                steps,
                todo,
                self.questions,
                self.marks,
                self.seen,
            )
            if code == FILLED:
                return todo[: steps[k.LEFT]]
            self._grow(code)

    def _asked(self) -> list[list[Question]]:
        """The questions of this round, by the worker who is to answer."""
        count = int(self.steps[k.ASKED])
        parts: list[list[Question]] = [[] for _ in range(len(self.peers))]
        to = (self.marks[:count] >> np.uint64(5)) % np.uint64(len(self.peers))
        chunks = self.known.chunks
        table = self.known.values.reshape(-1, chunks)
        for (thread, position, shared, number), worker in zip(
            self.questions[:count].tolist(), to.tolist(), strict=True
        ):
            when = Moment(int(self.ranks[number]), self._lane(thread))
            row = tuple(table[shared].tolist())
            parts[worker].append(Question(when, thread, position, row))
        return parts

    def _lane(self, thread: int) -> int:
        late = len(self.lanes) if thread in self.alone else 0
        return late + thread

    def _answer(self, questions: list[Question]) -> None:
        questions.sort()
        mine = self.answering.answer(questions)
        answers: list[Answers] = self.peers.tell(mine)
        troubles = [one.trouble for one in answers if one.trouble is not None]
        if troubles:
            raise min(troubles, key=lambda trouble: trouble.when).error
        self._learn_nesting(answers)
        for one in answers:
            for label, when in one.seen.items():
                self.ticked[label] = min(when, self.ticked.get(label, when))
                self.explorer.turns.unseen.pop(label, None)
            self.suspects += [new for new in one.reports if new.prop not in self.reported]
        own = self.answering.own
        for words in read(answers, self.peers.number, own, self.numbering):
            self._add_facts(words)
        for way in [way for one in answers for way in one.positions]:
            number = self.numbering.learn_position(way)
            self.steady[way.thread, number] = way.steady
            self.store.make_room_for(number, 0)

    def _learn_nesting(self, answers: list[Answers]) -> None:
        turns = self.explorer.turns
        order = self.explorer.machine.layout.lock_order
        if not order.trusted:
            return
        for outer, inner in [pair for one in answers for pair in one.nested]:
            inside = turns.acts.inside.setdefault(outer, set())
            inside.add(inner)
            if turns.acts.leads(inner, outer):
                raise Mistrust(order.name)

    def _add_facts(self, words: Words) -> None:
        known, steps = self.known, self.steps
        while steps[k.WRITTEN] + 3 * len(words) + 2 > len(known.facts):
            known.facts.resize(2 * len(known.facts), refcheck=False)
        most = int(steps[k.FACTS]) + len(words) // 5
        while most > len(known.fact_slots) // 3 * 2:
            slots = np.zeros(2 * len(known.fact_slots), np.int64)
            move_facts(known.facts, known.fact_slots, slots)
            known.fact_slots = slots
        k.add_facts(steps, known.facts, known.fact_slots, known.first_view, self.common, words)

    # --- from one level to the next ---------------------------------------------------------------

    def _expand(self) -> Level:
        end = int(self.store.ctl[c.COUNT])
        halted = np.zeros(end - self.begin, np.int64)
        self._expand_to(end, halted)
        transitions = int(self.steps[k.FOUND])
        found = self._judge(halted[: self.steps[k.LEFT]].tolist(), end)
        self._insert(self.peers.exchange(self._outgoing(transitions)))
        return self._rank(end, transitions, found)

    def _expand_to(self, end: int, halted: Words) -> None:
        store, steps = self.store, self.steps
        steps[k.AT], steps[k.LEFT], steps[k.FOUND] = self.begin, 0, 0
        while True:
            code = k.expand(
                *self._lookups(),
                store.order,
                store.rows,
                store.row_slots,
                self.steady,
                self.lanes,
                self.alone,
                steps,
                end,
                self.ranks,
                self.candidates,
                halted,
            )
            if code == FILLED:
                return
            self._grow(code)

    def _outgoing(self, count: int) -> list[tuple[Words, ...]]:
        """Candidates by the worker who owns them, with the rows that it does not know yet."""
        keys, shared, places = self.candidates[:, :count]
        owners = self._owner(shared)
        self.sent_shared = _longer(self.sent_shared, len(self.known.hashes))
        fresh = np.zeros(count, np.int64)
        parts: list[tuple[Words, ...]] = []
        for worker in range(len(self.peers)):
            these = owners == worker
            mine = (keys[these], shared[these], places[these])
            if worker == self.peers.number:
                parts.append(mine)
                continue
            new = k.renumber(mine[1], self.sent_shared, fresh, self.next_shared[worker])
            self.next_shared[worker] += int(new)
            rows = self.known.values.reshape(-1, self.known.chunks)[fresh[:new]]
            sent = _longer(self.sent_places[worker], len(self.store.rows) // self.store.threads)
            self.sent_places[worker] = sent
            new = k.renumber(mine[2], sent, fresh, self.next_places[worker])
            self.next_places[worker] += int(new)
            parts.append(
                (*mine, rows, self.store.rows.reshape(-1, self.store.threads)[fresh[:new]])
            )
        return parts

    def _insert(self, incoming: list[tuple[Words, ...]]) -> None:
        known, store = self.known, self.store
        keys, states = [], []
        for worker, (their_keys, shared, places, *rows) in enumerate(incoming):
            if worker != self.peers.number:
                new_shared, new_places = rows
                self.shared_of[worker] = np.concatenate(
                    (self.shared_of[worker], intern_shared(known, new_shared))
                )
                self.places_of[worker] = np.concatenate(
                    (self.places_of[worker], intern_places(store, new_places))
                )
                shared = self.shared_of[worker][shared]
                places = self.places_of[worker][places]
            keys.append(their_keys)
            states.append(shared.astype(np.uint64) << np.uint64(32) | places.astype(np.uint64))
        ends = np.cumsum([len(part) for part in keys])
        heads = np.concatenate(([0], ends[:-1])).astype(np.int64)
        all_keys, all_states = np.concatenate(keys), np.concatenate(states)
        new_keys = np.empty(len(all_keys), np.int64)
        begin = int(store.ctl[c.COUNT])
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
            if code == FILLED:
                break
            self._grow(code)
        self.new_keys = new_keys[:done]
        assert int(store.ctl[c.COUNT]) == begin + done

    def _rank(
        self,
        begin: int,
        transitions: int,
        found: dict[str, tuple[Moment, Report, tuple[int, ...]]],
    ) -> Level:
        """Number the new states as one loop would have."""
        mine = self.new_keys
        all_keys = self.peers.tell(mine)
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
        ticked, self.ticked = self.ticked, {}
        level = Level(
            self.depth,
            len(mine),
            transitions,
            found,
            ticked,
            new > 0,
            cut,
            getrusage(RUSAGE_SELF).ru_maxrss / 1024,
            time.process_time(),
            self.explorer.turns.segments_run,
        )
        self.depth += 1
        return level

    # --- what is broken ---------------------------------------------------------------------------

    def _judge(
        self, halted: list[int], end: int
    ) -> dict[str, tuple[Moment, Report, tuple[int, ...]]]:
        """For each property that is broken in this level for the first time: by whom, how."""
        found: dict[str, tuple[Moment, Report, tuple[int, ...]]] = {}
        store, known = self.store, self.known
        states = store.order[self.begin : end]
        places = (states & np.uint64(0xFFFFFFFF)).astype(np.int64)
        shared = (states >> np.uint64(32)).astype(np.int64)
        table = known.values.reshape(-1, known.chunks)
        for nth, suspect in enumerate(self.suspects):
            there = store.rows[places * store.threads + suspect.thread] == suspect.position
            users = np.flatnonzero(there)
            for chunk, value in zip(suspect.chunks, suspect.values, strict=True):
                users = users[table[shared[users], chunk] == value]
            lane = self._lane(suspect.thread)
            for user in users.tolist():
                if not self._looks(self.begin + user, suspect.thread):
                    continue
                when = Moment(int(self.ranks[self.begin + user]), lane, nth)
                if suspect.prop not in found or when < found[suspect.prop][0]:
                    row = tuple(table[shared[user]].tolist())
                    found[suspect.prop] = (when, suspect, row)
                break
        if "deadlock" not in self.reported:
            for number in halted:
                report = self._deadlock(number)
                if report is not None:
                    when = Moment(int(self.ranks[number]), DEADLOCK_LANE)
                    row = tuple(table[int(store.order[number]) >> 32].tolist())
                    found["deadlock"] = (when, report, row)
                    break
        return found

    def _looks(self, number: int, wanted: int) -> bool:
        """Whether what a thread can do is looked at in a state, before others make it needless."""
        shared, positions = self.store.state(number)
        rival = None
        anybody = False
        for thread in self.lanes.tolist():
            if thread == wanted:
                return True
            head = self.known.entry(thread, shared, positions[thread])[0]
            anybody = anybody or (head & 3 in (c.FREE, c.URGENT) and head >> 2 > 0)
            if head & 3 == c.URGENT:
                return False
            if head & 3 == c.BLOCKED:
                rival = head >> 2
                return rival == wanted
        return not anybody

    def _deadlock(self, number: int) -> Report | None:
        """Nobody moves: whether everybody waits, and for what."""
        explorer, numbering = self.explorer, self.numbering
        shared, numbers = self.store.state(number)
        row = self.known.shared(shared)
        mine = [numbering.go_to(thread, at) for thread, at in enumerate(numbers)]
        threads = explorer.machine.threads
        ops = [table.op(at) for table, at in zip(explorer.positions, mine, strict=True)]
        late = all(op is None or one.alone for op, one in zip(ops, threads, strict=True))
        waiting = [
            (thread, op)
            for thread, op in enumerate(ops)
            if op is not None and (late or not threads[thread].alone)
        ]
        here = numbering.shared(row)
        if not waiting or any(explorer.turns.can_move(here, t, mine[t]) for t, _ in waiting):
            return None  # the end, or a harm cut the search off here
        who = "; ".join(f"{threads[t].name} at {op.describe()}" for t, op in waiting)
        return Report("deadlock", HARM, f"everybody waits: {who}", -1, 0, (), (), ())

    # --- the end ----------------------------------------------------------------------------------

    def part(self) -> Part:
        """What it has, for whoever looks at the whole graph."""
        store, known = self.store, self.known
        count = int(store.ctl[c.COUNT])
        turns = int(self.steps[k.FOUND])
        parents = self.new_keys >> k.TURN_BITS
        keys = self.candidates[0, :turns] >> k.TURN_BITS
        if self.cut >= 0:
            parents, keys = parents[parents <= self.cut], keys[keys <= self.cut]
        announced = self.numbering.announced if self.peers.number == 0 else []
        ways = [way for table in self.numbering.ways for way in table if way is not None]
        return Part(
            store.order[:count],
            self.ranks[:count],
            self.parents[:count],
            store.rows[: int(store.ctl[c.PLACES]) * store.threads],
            known.values[: int(store.ctl[c.SHARED]) * known.chunks],
            known.pool[: int(store.ctl[c.USED])],
            len(parents),
            len(keys),
            announced,
            ways if self.peers.number == 0 else [],
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
