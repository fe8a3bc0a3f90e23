"""Turns: what a thread does between two points at which the order of threads matters.

With reduction on, a turn is ``(right | both)* neither? (left | both)*`` in Lipton's sense:
acquisitions run together with the operation after them, releases with the one before, and what
nobody else can see with either.  An operation under the exclusive lock on what the lock guards is
such a one.  With reduction off every operation is a turn of its own, but for choices, which come
with the operation after them.

A turn is run in *segments*.  A segment looks at a few chunks only, so its outcome is remembered for
all states that agree on those: MMU code runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, TypeVar, cast

from tdpmmu.events.records import Event, GuestAccess, HostPageReused, NxPageRecovered
from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Choose, Op, Step
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.chunks import ChunkTable, ChunkView, Shared
from tdpmmu.worlds.explore.position import Positions

LONGEST_TURN = 20_000
"""Operations in one turn beyond which a thread is taken to spin without ever being seen."""

SEGMENT = 6
"""Operations in one segment: enough to be worth a look-up, few enough to look at little."""


class Mistrust(Exception):
    """A guard was not kept to; it has lost its trust, and the search has to start again."""


Violations = tuple[tuple[Ghost, str], ...]


@dataclass(slots=True)
class Segment:
    """One outcome of a piece of a turn: what it changes, where it leads, how to do the same again.

    ``stuck``: nothing but choices, and now the thread is blocked.
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


_Found = TypeVar("_Found")


def _nothing(shared: Shared) -> object:
    return None


class _Known(Generic[_Found]):
    """What is known of one place in a thread, by the chunks that it depends on."""

    __slots__ = ("by_chunks",)

    def __init__(self) -> None:
        self.by_chunks: dict[
            tuple[int, ...], tuple[Callable[[Shared], object], dict[object, _Found]]
        ] = {}

    def find(self, shared: Shared, looked: set[int] | None = None) -> _Found | None:
        for chunks, (these, known) in self.by_chunks.items():
            found = known.get(these(shared))
            if found is not None:
                if looked is not None:
                    looked.update(chunks)
                return found
        return None

    def add(self, looked: set[int], shared: Shared, found: _Found) -> None:
        chunks = tuple(sorted(looked))
        entry = self.by_chunks.get(chunks)
        if entry is None:
            these = itemgetter(*chunks) if chunks else _nothing
            entry = self.by_chunks[chunks] = (these, {})
        entry[1][entry[0](shared)] = found


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
        reduce: bool = True,
    ) -> None:
        self._machine = machine
        self._positions = positions
        self._chunks = chunks
        self._listeners = machine.listeners()
        self._reduce = reduce
        self._known: list[dict[tuple[int, bool, bool], _Known[tuple[Segment, ...]]]] = [
            {} for _ in machine.threads
        ]
        self._turns: list[dict[int, _Known[Choices]]] = [{} for _ in machine.threads]
        self._inside: dict[str, set[str]] = {}
        self.unseen = dict(machine.sometimes)
        self.segments_run = 0

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
            known = self._turns[thread][position] = _Known()
        found = known.find(shared)
        if found is None:
            looked: set[int] = set()
            outcomes = tuple(self._compose(shared, thread, position, looked))
            if all(outcome.stuck for outcome in outcomes):
                outcomes = ()  # whatever it chooses, it has to wait
            urgent, rival = self._order(shared, thread, position, looked)
            found = Choices(
                outcomes,
                urgent and bool(outcomes),
                None if outcomes else rival,
                tuple(sorted(looked)),
            )
            known.add(looked, shared, found)
        return found

    def _order(
        self, shared: Shared, thread: int, position: int, looked: set[int]
    ) -> tuple[bool, int | None]:
        """Whether the turn may as well come first, and whom the thread waits for if blocked."""
        op = self._positions[thread].op(position)
        if not self._reduce or op is None or not hasattr(op, "vcpu"):
            return False, None
        step = Step(self._chunks.state(shared), thread)
        step.looked = looked
        return op.urgent(step), op.waits_for_kick(step)

    def _compose(
        self, shared: Shared, thread: int, position: int, looked: set[int]
    ) -> Iterator[Segment]:
        if self._positions[thread].op(position) is None:
            return
        start = (shared, (position, False, True))
        stack: list[tuple[_Point, tuple[Segment, ...], tuple[_Point, ...]]] = [(start, (), ())]
        been: dict[_Point, list[tuple[Segment, ...]]] = {}
        while stack:
            point, parts, way = stack.pop()
            now, (at, after, idle) = point
            if point in way:
                yield _joined(shared, now, parts)  # it goes round: let others in between
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
                yield _joined(shared, end, parts)

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
            known = places[place] = _Known()
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
        """Run the thread's own code for one segment."""
        self.segments_run += 1
        table = self._positions[thread]
        alone = self._machine.threads[thread].alone
        begin = Step((), thread, self._listeners)
        begin.chunks = self._chunks.view(shared)
        begin.looked = looked
        outcomes: list[Segment] = []
        number = self._chunks.number

        def close(
            step: Step, pos: int, ends: bool, failure: str | None = None, stuck: bool = False
        ) -> None:
            outcomes.append(
                Segment(
                    tuple(
                        [(i, number(i, new)) for i, new in cast(ChunkView, step.chunks).changes()]
                    ),
                    pos,
                    after,
                    idle,
                    ends,
                    done,
                    tuple(step.events),
                    tuple(step.violations),
                    failure,
                    stuck,
                )
            )

        stack: list[tuple[Step, int, tuple[int, ...], bool, bool]] = [
            (begin, position, (), after, idle)
        ]
        while stack:
            step, pos, done, after, idle = stack.pop()
            while True:
                op = table.op(pos)
                if op is None:
                    raised = table.raised(pos)
                    close(step, pos, True, _describe(raised, table, pos) if raised else None)
                    break
                if step.violations and any(ghost.kind == HARM for ghost, _ in step.violations):
                    close(step, pos, True)  # what comes after a harm means nothing
                    break
                if done and (len(done) >= SEGMENT or hasattr(op, "vcpu")):
                    close(step, pos, False)
                    break
                if alone:
                    mover = BOTH
                elif self._reduce:
                    mover = op.mover(step)
                else:
                    mover = RIGHT if type(op) is Choose else NEITHER
                if after and mover in (NEITHER, RIGHT):
                    close(step, pos, True)
                    break
                if not (after or idle or alone) and _may_block(op):
                    # Whoever has taken something must be seen with it, or deadlocks are lost.
                    close(step, pos, True)
                    break
                count = op.alternatives(step)
                if alone and type(op) is Choose:
                    count = 1  # nobody is there whom a choice could matter to
                if count == 0:
                    # Blocked: what came before stands, if it was more than choices.
                    close(step, pos, True, stuck=idle)
                    break
                after = after or mover in (NEITHER, LEFT)
                idle = idle and type(op) is Choose
                for alternative in range(count - 1, 0, -1):
                    other = step.copy()
                    result = op.apply(other, alternative)
                    self._note(other)
                    stack.append(
                        (other, table.next(pos, result), (*done, alternative), after, idle)
                    )
                try:
                    result = op.apply(step, 0)
                except AssertionError as error:
                    done = (*done, 0)
                    close(step, pos, True, f"{op.describe()}: {error!r}")
                    break
                if step.broken or step.nested or len(step.events) > step.noted:
                    self._note(step)
                pos = table.next(pos, result)
                done = (*done, 0)
        return tuple(outcomes)

    def _note(self, step: Step) -> None:
        """Tick off what was to be seen sometimes, and give up if a guard proves to be none."""
        events = step.events
        if len(events) > step.noted:
            if self.unseen:
                for event in events[step.noted :]:
                    for label in [k for k, shows in self.unseen.items() if shows(event, step)]:
                        del self.unseen[label]
            step.noted = len(events)
        while step.nested and self._reduce:
            outer, inner, order = step.nested.pop()
            if not order.trusted or inner in self._inside.get(outer, ()):
                continue
            self._inside.setdefault(outer, set()).add(inner)
            if self._leads(inner, outer):
                step.broken.append(order)
        if step.broken and self._reduce:
            broken = [guard for guard in step.broken if guard.trusted]
            for guard in broken:
                guard.trusted = False
            if broken:
                raise Mistrust(", ".join(guard.name for guard in broken))

    def _leads(self, lock: str, to: str) -> bool:
        """Whether ``to`` is taken inside ``lock``, directly or not."""
        seen: set[str] = set()
        todo = [lock]
        while todo:
            outer = todo.pop()
            if outer == to:
                return True
            if outer not in seen:
                seen.add(outer)
                todo += self._inside.get(outer, ())
        return False

    def can_move(self, shared: Shared, thread: int, position: int) -> bool:
        """Whether the thread could move from here, had its turns not been cut off by a harm."""
        return bool(self.outcomes(shared, thread, position))


def _shows_the_same(parts: tuple[Segment, ...], others: tuple[Segment, ...]) -> bool:
    """Whether two ways to one point differ in choices at most."""
    return [x for part in parts for x in (*part.events, *part.violations)] == [
        x for part in others for x in (*part.events, *part.violations)
    ]


def _joined(shared: Shared, end: Shared, parts: tuple[Segment, ...]) -> Segment:
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
    )


def _describe(raised: BaseException, table: Positions, pos: int) -> str:
    where = table.line(pos)
    text = f"{type(raised).__name__}: {raised}"
    if where:
        function, _, line = where[-1]
        text += f" in {function}, line {line}"
    return text


def _may_block(op: Op) -> bool:
    """Whether it can find itself blocked, other than by a lock.

    Locks block, too, but one inside the other is harmless as long as all nest in one order; where
    they do not, taking one is a turn of its own (``Layout.lock_order``).
    """
    return (
        type(op) is not Choose
        and op.waits_in_line_for is None
        and type(op).alternatives is not Op.alternatives
    )
