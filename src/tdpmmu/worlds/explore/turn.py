"""Turns: what a thread does between two points at which the order of threads matters.

With movers (:mod:`~tdpmmu.worlds.explore.reductions`) a turn is
``(right | both)* neither? (left | both)*`` in Lipton's sense:
acquisitions run together with the operation after them, releases with the one before, and what
nobody else can see with either.  An operation under the exclusive lock on what the lock guards is
such a one.  Without, every operation is a turn of its own, but for choices, which come with the
operation after them.

An operation may be seen by nobody only some time after the turn before it has ended.  Then it, and
what follows of the kind, is an *urgent* turn: it is taken at once, as if it had come with that one.

A turn is run in *segments*.  A segment looks at a few chunks only, so its outcome is remembered for
all states that agree on those: MMU code runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tdpmmu.events.records import Event, GuestAccess, HostPageReused, NxPageRecovered
from tdpmmu.machine.ghost import Ghost
from tdpmmu.machine.op import LEFT, NEITHER, RIGHT, Step
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.acts import Act, Acts, Deed, Violations
from tdpmmu.worlds.explore.chunks import ChunkTable, Shared
from tdpmmu.worlds.explore.memo import Memo
from tdpmmu.worlds.explore.position.table import Positions
from tdpmmu.worlds.explore.reductions import URGENT, WAITS, Reduce, reductions

LONGEST_TURN = 20_000
"""Operations in one turn beyond which a thread is taken to spin without ever being seen."""

SEGMENT = 6
"""Operations in one segment: enough to be worth a look-up, few enough to look at little."""


@dataclass(slots=True)
class Segment:
    """One outcome of a piece of a turn: what it changes, where it leads, how to do the same again.

    ``stuck``: nothing but choices, and now the thread is blocked.  ``round``: it would go on for
    ever.
    """

    chunks: tuple[tuple[int, int], ...]
    position: int
    after: bool
    idle: bool
    ends: bool
    alternatives: tuple[int, ...]
    events: tuple[Event, ...]
    violations: Violations
    failure: str | None
    stuck: bool = False
    progress: bool = False
    round: bool = False


@dataclass(slots=True)
class Turn:
    """One outcome of a turn."""

    thread: int
    alternatives: tuple[int, ...]
    shared: Shared
    position: int
    events: tuple[Event, ...]
    violations: Violations
    failure: str | None = None

    @property
    def progress(self) -> bool:
        """Whether anything got done."""
        return any(is_progress(event) for event in self.events)


def is_progress(event: Event) -> bool:
    """What counts as getting on: an access that went through, a page recovered or taken back."""
    kind = type(event)
    if kind is GuestAccess:
        return not event.fault  # type: ignore[attr-defined]
    return kind is NxPageRecovered or kind is HostPageReused


@dataclass(slots=True)
class Choices:
    """What a thread can do next.

    ``urgent``: nobody can tell when it happens, so it may as well happen first.  ``rival``: blocked
    until that thread has moved, and that alone need be looked at.  ``chunks``: all that it depends
    on.
    """

    outcomes: tuple[Segment, ...]
    urgent: bool
    rival: int | None
    chunks: tuple[int, ...]


@dataclass(slots=True)
class _Way:
    """How far a segment has come: shared state, what of it has changed, what happened."""

    row: list[int]
    changes: dict[int, int]
    done: tuple[int, ...]
    events: tuple[Event, ...]
    violations: Violations
    harm: bool

    def copy(self) -> _Way:
        return _Way(
            self.row.copy(),
            self.changes.copy(),
            self.done,
            self.events,
            self.violations,
            self.harm,
        )

    def add(self, act: Act, alternative: int) -> None:
        """One operation more."""
        for index, number in act.changes:
            self.row[index] = self.changes[index] = number
        self.done = (*self.done, alternative)
        if act.events:
            self.events += act.events
        if act.violations:
            self.violations += act.violations
            self.harm = self.harm or act.harm


_Point = tuple[Shared, tuple[int, bool, bool]]
"""Where a turn stands between two of its segments."""


class Turns:
    """Runs threads, one turn at a time, on states."""

    def __init__(
        self,
        machine: Machine,
        positions: list[Positions],
        chunks: ChunkTable,
        *,
        reduce: Reduce = True,
    ) -> None:
        self._machine = machine
        self._positions = positions
        self.reduce = reductions(reduce)
        self.acts = Acts(machine, positions, chunks, reduce=reduce)
        self._known: list[dict[tuple[int, bool, bool], Memo[tuple[Segment, ...]]]] = [
            {} for _ in machine.threads
        ]
        self._turns: list[dict[int, Memo[Choices]]] = [{} for _ in machine.threads]
        self.segments_run = 0

    @property
    def unseen(self) -> dict[str, Callable[[Event, Step], bool]]:
        """What was to happen sometimes, and has not yet."""
        return self.acts.unseen

    def take(self, shared: Shared, thread: int, position: int) -> Iterator[Turn]:
        """Every outcome of the thread's next turn, in a fixed order; none if it is blocked."""
        for outcome in self.outcomes(shared, thread, position):
            after = list(shared)
            for index, number in outcome.chunks:
                after[index] = number
            yield Turn(
                thread,
                outcome.alternatives,
                tuple(after),
                outcome.position,
                outcome.events,
                outcome.violations,
                outcome.failure,
            )

    def outcomes(self, shared: Shared, thread: int, position: int) -> tuple[Segment, ...]:
        """The same as changes."""
        return self.choices(shared, thread, position).outcomes

    def choices(self, shared: Shared, thread: int, position: int) -> Choices:
        """All about the thread's next turn; that, too, depends on some chunks only."""
        known = self._turns[thread].get(position)
        if known is None:
            known = self._turns[thread][position] = Memo()
        found = known.find(shared)
        if found is None:
            looked: set[int] = set()
            deed = self.acts.at(thread, position)
            early = deed is not None and self.acts.early(deed, position, shared, looked)
            outcomes = tuple(self._compose(shared, thread, position, early, looked))
            if all(outcome.stuck for outcome in outcomes):
                outcomes = ()  # whatever it chooses, it has to wait
            urgent, rival = self._order(deed, shared, looked)
            urgent = urgent or (early and not any(outcome.round for outcome in outcomes))
            found = Choices(
                outcomes,
                urgent and bool(outcomes),
                None if outcomes else rival,
                tuple(sorted(looked)),
            )
            known.add(looked, shared, found)
        return found

    def _order(
        self, deed: Deed | None, shared: Shared, looked: set[int]
    ) -> tuple[bool, int | None]:
        """Whether the turn may as well come first, and whom the thread waits for if blocked."""
        if not self.reduce & {URGENT, WAITS} or deed is None or not deed.vcpu:
            return False, None
        order = self.acts.order(deed, shared, looked)
        return order.urgent, order.rival

    def _compose(
        self, shared: Shared, thread: int, position: int, early: bool, looked: set[int]
    ) -> Iterator[Segment]:
        if self._positions[thread].op(position) is None:
            return
        start = (shared, (position, early, True))
        stack: list[tuple[_Point, tuple[Segment, ...], tuple[_Point, ...]]] = [(start, (), ())]
        been: dict[_Point, list[tuple[Segment, ...]]] = {}
        while stack:
            point, parts, way = stack.pop()
            now, (at, after, idle) = point
            if point in way:
                yield _joined(shared, now, parts, round=True)  # let others in between
                continue
            others = been.setdefault(point, [])
            if any(_shows_the_same(parts, other) for other in others):
                continue  # whatever comes now has come before
            others.append(parts)
            more = self._segments(now, thread, at, after, idle, looked)
            for segment in reversed(more):
                chunks = list(now)
                for index, number in segment.chunks:
                    chunks[index] = number
                place = (segment.position, segment.after, segment.idle)
                stack.append(((tuple(chunks), place), (*parts, segment), (*way, point)))
            while stack and (stack[-1][1][-1].ends or len(stack[-1][1]) > LONGEST_TURN // SEGMENT):
                (end, _), parts, _ = stack.pop()
                yield _joined(shared, end, parts, round=not parts[-1].ends)

    def _segments(
        self,
        shared: Shared,
        thread: int,
        position: int,
        after: bool,
        idle: bool,
        looked: set[int],
    ) -> tuple[Segment, ...]:
        places = self._known[thread]
        place = (position, after, idle)
        known = places.get(place)
        if known is None:
            known = places[place] = Memo()
        found = known.find(shared, looked)
        if found is None:
            here: set[int] = set()
            found = self._run(shared, thread, position, after, idle, here)
            known.add(here, shared, found)
            looked |= here
        return found

    def _run(
        self,
        shared: Shared,
        thread: int,
        position: int,
        after: bool,
        idle: bool,
        looked: set[int],
    ) -> tuple[Segment, ...]:
        """Run the thread for one segment."""
        self.segments_run += 1
        acts = self.acts
        table = self._positions[thread]
        alone = self._machine.threads[thread].alone
        outcomes: list[Segment] = []

        def close(
            way: _Way, pos: int, ends: bool, failure: str | None = None, stuck: bool = False
        ) -> None:
            chunks = tuple([(i, new) for i, new in way.changes.items() if shared[i] != new])
            outcomes.append(
                Segment(
                    chunks,
                    pos,
                    after,
                    idle,
                    ends,
                    way.done,
                    way.events,
                    way.violations,
                    failure,
                    stuck,
                )
            )

        stack = [(_Way(list(shared), {}, (), (), (), False), position, after, idle)]
        while stack:
            way, pos, after, idle = stack.pop()
            while True:
                deed = acts.at(thread, pos)
                if deed is None:
                    raised = table.raised(pos)
                    close(way, pos, True, _describe(raised, table, pos) if raised else None)
                    break
                if way.harm:
                    close(way, pos, True)  # what comes after a harm means nothing
                    break
                if way.done and (len(way.done) >= SEGMENT or deed.vcpu):
                    close(way, pos, False)
                    break
                mover = acts.mover(deed, way.row, looked)
                if after and mover in (NEITHER, RIGHT):
                    close(way, pos, True)
                    break
                if not (after or idle or alone) and deed.may_block:
                    # Whoever has taken something must be seen with it, or deadlocks are lost.
                    close(way, pos, True)
                    break
                found = acts.acts(deed, way.row, looked)
                if not found:
                    # Blocked: what came before stands, if it was more than choices.
                    close(way, pos, True, stuck=idle)
                    break
                after = after or mover in (NEITHER, LEFT)
                idle = idle and deed.chooses
                for alternative in range(len(found) - 1, 0, -1):
                    act = found[alternative]
                    other = way.copy()
                    other.add(act, alternative)
                    stack.append((other, table.next(pos, act.result), after, idle))
                act = found[0]
                way.add(act, 0)
                if act.failure is not None:
                    close(way, pos, True, act.failure)
                    break
                pos = table.next(pos, act.result)
        return tuple(outcomes)

    def can_move(self, shared: Shared, thread: int, position: int) -> bool:
        """Whether the thread could move from here, had its turns not been cut off by a harm."""
        return bool(self.outcomes(shared, thread, position))


def _shows_the_same(parts: tuple[Segment, ...], others: tuple[Segment, ...]) -> bool:
    """Whether two ways to one point differ in choices at most."""
    return _shown(parts) == _shown(others)


def _shown(parts: tuple[Segment, ...]) -> tuple[list[Event], list[tuple[Ghost, str]]]:
    events = [event for part in parts for event in part.events]
    return events, [violation for part in parts for violation in part.violations]


def _joined(
    shared: Shared, end: Shared, parts: tuple[Segment, ...], *, round: bool = False
) -> Segment:
    """The segments of one turn as one."""
    last = parts[-1]
    if len(parts) == 1:
        events, violations, alternatives = last.events, last.violations, last.alternatives
    else:
        events = tuple([event for part in parts for event in part.events])
        violations = tuple([violation for part in parts for violation in part.violations])
        alternatives = tuple([chosen for part in parts for chosen in part.alternatives])
    return Segment(
        tuple([(i, n) for i, n in enumerate(end) if shared[i] != n]),
        last.position,
        last.after,
        last.idle,
        True,
        alternatives,
        events,
        violations,
        last.failure,
        last.stuck,
        any(map(is_progress, events)),
        round,
    )


def _describe(raised: BaseException, table: Positions, pos: int) -> str:
    where = table.line(pos)
    text = f"{type(raised).__name__}: {raised}"
    if where:
        function, _, line = where[-1]
        text += f" in {function}, line {line}"
    return text
