"""What is told to compiled code of operations and positions, and how it asks for more."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tdpmmu.worlds.explore.acts import ACTS, MOVES, QUESTIONS, Act, Deed, Fact, Order
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import facts as f
from tdpmmu.worlds.explore.fast import learnt as le
from tdpmmu.worlds.explore.fast.compose import MOST_HEARD, STARTS, new_scratch
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.fact_arrays import FactArrays
from tdpmmu.worlds.explore.reductions import BEGIN, URGENT, WAITS
from tdpmmu.worlds.explore.turn import is_progress

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.chunks import Shared
    from tdpmmu.worlds.explore.engine import Explorer

POSITIONS = 1 << 18
"""Room for one thread's positions."""

WORD = np.dtype(np.int64).itemsize

MOVERS = {"right": le.RIGHT, "both": le.BOTH, "left": le.LEFT, "neither": le.NEITHER}

Outcome = tuple[int, bool, tuple[tuple[int, int], ...]]
"""Where a turn leads: position, whether it gets on, and ``(chunk, number)`` of what it changes."""


class Learner:
    """The arrays behind composing, and the threads' code that fills them."""

    def __init__(self, ctl: Words, explorer: Explorer, facts: int = 1 << 16) -> None:
        self.ctl = ctl
        self.explorer = explorer
        self.acts = explorer.turns.acts
        self.positions = explorer.positions
        threads, self.chunks = len(explorer.positions), len(explorer.machine.initial)
        self._listed = [0] * threads
        self._stepped = [0] * threads
        self._logged = self._described = 0
        self._crcs = [0] * (threads + 1)
        self._results: dict[Hashable, int] = {}
        self._events: dict[Any, int] = {}
        self._violations: dict[tuple[str, str], int] = {}
        self._properties: dict[str, int] = {}
        ctl[c.SEQUENCES], self._after = 0, 0
        reduce = explorer.turns.reduce
        ctl[c.ORDERED] = bool(reduce & {URGENT, WAITS})
        assert all(table.initial == 0 for table in self.positions)
        urgent = URGENT in reduce and explorer.machine.layout.urgency.trusted
        ctl[c.EARLY] = urgent * (2 if BEGIN in reduce else 1)
        # What is not touched takes no memory.
        self.turns = FactArrays(ctl, c.FACTS, c.WRITTEN, threads * POSITIONS, facts)
        self.segments = FactArrays(ctl, c.SEGMENTS, c.SEGMENT_WORDS, 4 * threads * POSITIONS, facts)
        self.ops = FactArrays(ctl, c.OP_FACTS, c.OP_WRITTEN, QUESTIONS << 8, facts)
        self.deeds: Words = np.zeros(threads * POSITIONS, np.int32)
        self.flags: Words = np.zeros(1 << 8, np.uint8)
        self.after_keys: Words = np.zeros(1 << 10, np.int64)
        self.after: Words = np.zeros(1 << 10, np.int64)
        self.sequences: Words = np.zeros(1 << 14, np.int64)
        self.sequence_ids: Words = np.zeros(1 << 14, np.int64)
        self._room = 0
        self.grow_scratch(256)

    def learnt(self) -> le.Learnt:
        """The arrays, for compiled code."""
        return le.Learnt(
            self.ops.arrays(),
            self.segments.arrays(),
            self.turns.arrays(),
            self.deeds,
            self.flags,
            self.after_keys,
            self.after,
            self.sequences,
            self.sequence_ids,
        )

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take."""
        work = (*self.work[:-1], *self.work.bench)
        facts = (self.ops, self.segments, self.turns)
        return {"facts": sum(array.nbytes for array in (*work, *facts))}

    def digest(self) -> list[int]:
        """How much was learnt, and checksums."""
        return [self._logged, *self._stepped, *self._crcs]

    # --- growth -----------------------------------------------------------------------------------

    def grow_scratch(self, room: int = 0) -> None:
        """Room for longer turns, and for more outcomes."""
        self._room = room = room or 2 * self._room
        self.work = new_scratch(self.chunks, room)

    def grow_facts(self) -> None:
        """Room for more turns and segments, and for the longest that scratch has room for."""
        bench, about = self.work.bench, 2 * self.chunks + 4
        self.turns.grow(about + len(self.work.out), 1)
        self.segments.grow(about + len(bench.begins) + len(bench.out), 1)
        if self.ctl[c.SEQUENCES] + MOST_HEARD > len(self.sequences) // 3:
            self.sequences, self.sequence_ids = _larger(self.sequences, self.sequence_ids, 4)

    # --- telling ----------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell compiled code what has been found out since the last time."""
        for name in self.explorer.reported:
            self.ctl[c.REPORTED] |= 1 << self._property(name)
        self._tell_positions()
        while len(self.acts.deeds) > len(self.flags):
            self.flags.resize(2 * len(self.flags), refcheck=False)
            self.ops.views.resize(QUESTIONS * len(self.flags), refcheck=False)
        for deed in self.acts.deeds[self._described :]:
            self.flags[deed.number] = _about(deed)
        self._described = len(self.acts.deeds)
        self._tell_operations()

    def _tell_operations(self) -> None:
        log = self.acts.log
        if self._logged == len(log):
            return
        words: list[int] = []
        for fact in log[self._logged :]:
            words += self._words(fact)
        facts = len(log) - self._logged
        self._logged = len(log)
        batch = np.array(words, np.int64)
        self._crcs[-1] = zlib.crc32(batch.tobytes(), self._crcs[-1])
        self.ops.make_room_for(2 * len(batch) + 2 * facts, facts)
        le.learn(self.ctl, self.ops.arrays(), batch)

    def _tell_positions(self) -> None:
        for thread, table in enumerate(self.positions):
            for position in range(self._listed[thread], len(table)):
                deed = self.acts.at(thread, position)
                if deed is not None:
                    known = deed.number + 1
                else:
                    known = le.ENDED if table.raised(position) is None else le.RAISED
                self.deeds[thread << 18 | position] = known
            self._listed[thread] = len(table)
            steps: list[int] = []
            for position, result, after in table.steps[self._stepped[thread] :]:
                known = self._results.setdefault(result, len(self._results))
                steps += (thread << 18 | position, known, after)
            self._stepped[thread] = len(table.steps)
            if steps:
                batch = np.array(steps, np.int64)
                self._crcs[thread] = zlib.crc32(batch.tobytes(), self._crcs[thread])
                self._after += len(steps) // 3
                while self._after > len(self.after) // 3 * 2:
                    self.after_keys, self.after = _larger(self.after_keys, self.after, 2)
                le.learn_positions(self.learnt(), batch)

    def _property(self, name: str) -> int:
        number = self._properties.setdefault(name, len(self._properties))
        if number > 62:
            raise OverflowError("too many properties")
        return number

    def _words(self, fact: Fact) -> list[int]:
        number, question, chunks, values, answer = fact
        if question == MOVES:
            words = [MOVERS[cast(str, answer)]]
        elif question == ACTS:
            words = self._acts(self.acts.deeds[number].thread, cast(tuple[Act, ...], answer))
        else:
            order = cast(Order, answer)
            words = [order.urgent, 0 if order.rival is None else order.rival + 1]
        return [number * QUESTIONS + question, len(chunks), len(words), *chunks, *values, *words]

    def _acts(self, thread: int, acts: Sequence[Act]) -> list[int]:
        begins: list[int] = []
        words: list[int] = []
        for act in acts:
            begins.append(1 + len(acts) + len(words))
            about = le.HARM if act.harm else 0
            result = 0
            if act.failure is not None:
                about |= le.FAILED
            else:
                typed = self.positions[thread].typed(act.result)
                result = self._results.setdefault(typed, len(self._results))
            if any(map(is_progress, act.events)):
                about |= le.PROGRESS
            words += (result, about, len(act.events), len(act.violations), len(act.changes))
            words += [self._events.setdefault(one, len(self._events)) for one in act.events]
            for ghost, sentence in act.violations:
                key = (ghost.name, sentence)
                known = self._violations.setdefault(key, len(self._violations))
                words.append(known << 6 | self._property(ghost.name))
            for change in act.changes:
                words += change
        return [len(acts), *begins, *words]

    def ask(self, thread: int, shared: Shared, position: int, current: int = 0) -> None:
        """Run the threads' code for a thread's next turn.

        ``current`` is the state that is blamed for what the turn breaks.
        """
        explorer = self.explorer
        choices, outcomes = explorer.choices_from(thread, shared, position, current)
        kind, above = c.URGENT if choices.urgent else c.FREE, len(outcomes)
        if choices.rival is not None:
            kind, above, outcomes = c.BLOCKED, choices.rival, []
        elif not outcomes and explorer.positions[thread].op(position) is None:
            kind = c.GONE
        self.add_turns(
            thread,
            position,
            choices.chunks,
            shared,
            above << 2 | kind,
            [(outcome.position, outcome.progress, outcome.chunks) for outcome in outcomes],
        )

    def add_turns(
        self,
        thread: int,
        position: int,
        chunks: tuple[int, ...],
        row: Sequence[int],
        head: int,
        outcomes: Sequence[Outcome],
    ) -> None:
        """What a thread's next turn does whenever these chunks are as they are in ``row``."""
        words = [head]
        for end, progress, changes in outcomes:
            words += (progress << 31 | end, len(changes))
            for change in changes:
                words += change
        self.turns.make_room_for(2 * len(chunks) + len(words) + 4, 1)
        turns, ctl = self.turns.arrays(), self.ctl
        view, written = le.add_view(
            turns,
            ctl[c.WRITTEN],
            thread << 18 | position,
            np.array([*chunks, 0], np.int64),
            len(chunks),
        )
        values, answer = np.array(row, np.uint32), np.array(words, np.int64)
        at = le.add_fact(turns, written, view, values, 0, answer, len(words))
        ctl[c.WRITTEN] = at + len(words)
        ctl[c.FACTS] += 1

    # --- asking -----------------------------------------------------------------------------------

    def order(self, thread: int, position: int, row: Sequence[int]) -> None:
        """Whether the turn from here may come first."""
        deed = self.acts.at(thread, position)
        assert deed is not None
        self.acts.order(deed, row, set())

    def walk(self, thread: int, position: int, row: list[int], after: bool, idle: int) -> None:
        """Run a thread to the end of its turn, whatever it chooses, or to where all is known."""
        acts, table = self.acts, self.positions[thread]
        alone = self.explorer.machine.threads[thread].alone
        looked: set[int] = set()
        first = acts.at(thread, position)
        if idle == STARTS and first is not None:
            after = acts.early(first, position, row, looked)
        todo = [(position, row, after, bool(idle))]
        while todo:
            position, row, after, idle = todo.pop()
            known = len(acts.log) + len(table.steps)
            deed = acts.at(thread, position)
            if deed is None:
                continue
            mover = acts.mover(deed, row, looked)
            if after and mover in ("neither", "right"):
                continue
            if deed.may_block and not (after or idle or alone):
                continue
            after = after or mover in ("neither", "left")
            idle = idle and deed.chooses
            ways = []
            for act in reversed(acts.acts(deed, row, looked)):
                if act.failure is None:
                    end = table.next(position, act.result)
                    if not act.harm:
                        ways.append((end, act.changes))
            if len(acts.log) + len(table.steps) == known:
                continue
            for end, changes in ways:
                then = row.copy()
                for chunk, number in changes:
                    then[chunk] = number
                todo.append((end, then, after, idle))


def _about(deed: Deed) -> int:
    about = le.VCPU if deed.vcpu else 0
    about |= le.MAY_BLOCK if deed.may_block else 0
    about |= le.CHOOSES if deed.chooses else 0
    return about | (le.ALONE if deed.alone else 0)


def _larger(keys: Words, values: Words, times: int) -> tuple[Words, Words]:
    new_keys = np.zeros(times * len(keys), np.int64)
    new_values = np.zeros(times * len(keys), np.int64)
    f.move_keys(keys, values, new_keys, new_values)
    return new_keys, new_values
