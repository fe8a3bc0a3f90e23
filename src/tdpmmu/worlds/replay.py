"""The replaying world: one given order of the threads, operation by operation.

Nothing is interned, reduced or looked up: fresh coroutines run on plain states.  What it yields
says everything about each operation, so that reports need no other source.
"""

from __future__ import annotations

import traceback
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, CoroutineType, FrameType
from typing import Any, Protocol

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import Ghost
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import State
from tdpmmu.machine.thread import Machine, Thread


class ReplayError(ValueError):
    """The schedule cannot be run on this machine.  One line says where it fails and why."""


@dataclass(frozen=True, slots=True)
class Run:
    """``operations`` in a row by one thread.

    ``choices`` are ``(offset, alternative)`` for those of them, counted from 0, that do not take
    their first alternative.
    """

    thread: int
    operations: int
    choices: tuple[tuple[int, int], ...] = ()

    @property
    def alternatives(self) -> tuple[int, ...]:
        """The alternative of every operation."""
        chosen = dict(self.choices)
        return tuple(chosen.get(i, 0) for i in range(self.operations))


Schedule = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a thread's code: qualified function name, file, line number.

    ``call`` counts the thread's calls, so two calls of one function are told apart, and
    ``arguments`` is what it was called with, without ``self``, as far as it is seen at its first
    operation.  Neither makes a place another one.
    """

    function: str
    file: str
    line: int
    call: int = field(default=0, compare=False)
    arguments: tuple[tuple[str, Any], ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """One operation, and all that came of it.

    ``number`` counts operations from 1, over the whole schedule; ``run`` says which of its runs it
    belongs to, counted from 0.  ``place`` is where the thread stood, outermost function first.
    ``failure`` is the exception that the operation, or the thread right after it, ended with.
    """

    number: int
    run: int
    thread: int
    name: str
    op: Op
    alternative: int
    alternatives: int
    result: Any
    events: tuple[Event, ...]
    violations: tuple[tuple[Ghost, str], ...]
    before: State
    after: State
    place: tuple[Place, ...]
    failure: str | None = None


Arguments = tuple[tuple[str, Any], ...]
"""The arguments of a call by name."""

Standing = tuple[tuple[Place, ...], Op | None]
"""Where a thread stands, and its next operation; None at its end."""


class TurnLike(Protocol):
    """What the explorer's turns have in common with everybody else's."""

    @property
    def thread(self) -> int: ...

    @property
    def alternatives(self) -> Sequence[int]: ...


def schedule_of(turns: Iterable[TurnLike]) -> Schedule:
    """Turns as a schedule: turns in a row by one thread become one run."""
    runs: list[tuple[int, list[int]]] = []
    for turn in turns:
        if not runs or runs[-1][0] != turn.thread:
            runs.append((turn.thread, []))
        runs[-1][1].extend(turn.alternatives)
    return tuple(run_of(thread, chosen) for thread, chosen in runs)


def run_of(thread: int, alternatives: Sequence[int]) -> Run:
    """One run from the alternative of each of its operations."""
    choices = tuple((i, chosen) for i, chosen in enumerate(alternatives) if chosen)
    return Run(thread, len(alternatives), choices)


def cut(schedule: Schedule, operations: int) -> Schedule:
    """The first ``operations`` of a schedule."""
    runs: list[Run] = []
    left = operations
    for run in schedule:
        if left <= 0:
            break
        runs.append(run_of(run.thread, run.alternatives[:left]))
        left -= run.operations
    return tuple(runs)


class Replay:
    """One run of a schedule.  Iterate over it once; then ``state`` is the last state."""

    def __init__(self, machine: Machine, schedule: Iterable[Run]) -> None:
        self.machine = machine
        self.schedule = tuple(schedule)
        self.state = machine.initial
        self._listeners = machine.listeners()
        self._threads = [_Running(thread) for thread in machine.threads]
        self._number = 0

    def __iter__(self) -> Iterator[Record]:
        for index, run in enumerate(self.schedule):
            if not 0 <= run.thread < len(self._threads):
                raise ReplayError(
                    f"run {index + 1} is of thread {run.thread}, "
                    f"but there are only {len(self._threads)} threads"
                )
            for alternative in run.alternatives:
                yield self.operation(index, run.thread, alternative)

    def waiting(self) -> list[tuple[int, Op]]:
        """The threads that have not ended, by number, with the operation each stands at.

        Empty if one of them can move, so a list that is not empty is a deadlock.  Threads that
        start when all others have ended do not count.
        """
        waiting = []
        for number, running in enumerate(self._threads):
            if self.machine.threads[number].alone or (op := running.pending()) is None:
                continue
            if op.alternatives(Step(self.state, number)):
                return []
            waiting.append((number, op))
        return waiting

    def standing(self) -> tuple[Standing, ...]:
        """Where every thread stands now."""
        found = [(running.pending(), running.place()) for running in self._threads]
        return tuple((place, op) for op, place in found)

    def close(self) -> None:
        """Drop the coroutines that have not come to their end."""
        for running in self._threads:
            running.close()

    def operation(self, run: int, thread: int, alternative: int) -> Record:
        """One operation more: of ``thread``, with this alternative, as part of run ``run``.

        ReplayError if the thread cannot do it now.
        """
        self._number += 1
        running = self._threads[thread]
        op = running.pending()
        at = f"operation {self._number}: {running.name}"
        if op is None:
            raise ReplayError(f"{at} has come to its end, but the schedule goes on with it")
        place = running.place()
        step = Step(self.state, thread, self._listeners)
        count = op.alternatives(step)
        if count == 0:
            raise ReplayError(f"{at} is blocked at {op.describe()}, but the schedule lets it run")
        if not 0 <= alternative < count:
            raise ReplayError(
                f"{at} at {op.describe()} has {count} alternatives, "
                f"so there is no number {alternative}"
            )
        result: Any = None
        try:
            result = op.apply(step, alternative)
        except AssertionError as error:
            failure: str | None = f"{op.describe()}: {error!r}"
        except Exception as error:
            raise ReplayError(f"{at} fails at {op.describe()}: {error!r}") from error
        else:
            failure = running.send(result)
        before, self.state = self.state, step.state
        return Record(
            self._number,
            run,
            thread,
            running.name,
            op,
            alternative,
            count,
            result,
            tuple(step.events),
            tuple(step.violations),
            before,
            self.state,
            place,
            failure,
        )


def replay(machine: Machine, schedule: Iterable[Run]) -> Iterator[Record]:
    """Run ``schedule`` on ``machine``; ReplayError if it does not fit."""
    run = Replay(machine, schedule)
    try:
        yield from run
    finally:
        run.close()


def loop_of(records: Sequence[Record], end: tuple[Standing, ...]) -> int | None:
    """The number of the operation to which a run comes back at its ``end``, if it does.

    That is where state and threads are as they are at the end; the way between is a cycle.
    """
    if not records:
        return None
    standing = list(end)
    last = records[-1].after
    for record in reversed(records):
        standing[record.thread] = (record.place, record.op)
        if record.before == last and tuple(standing) == end:
            return record.number
    return None


class _Running:
    """A thread's coroutine and the operation it stands at."""

    __slots__ = ("_called", "_calls", "_coro", "_op", "_start", "name")

    def __init__(self, thread: Thread) -> None:
        self.name = thread.name
        self._start = thread.start
        self._called = 0
        self._calls: list[tuple[object, int, Arguments]] = []
        self._coro: Coroutine[Op, Any, Any] | None = None
        self._op: Op | None = None

    def pending(self) -> Op | None:
        """The operation it stands at, None at its end."""
        if self._coro is None:
            self._coro = self._start()
            failure = self.send(None)
            if failure is not None:
                raise ReplayError(f"{self.name} fails before its first operation: {failure}")
        return self._op

    def send(self, result: Any) -> str | None:
        """Go on to the next operation; the exception that ended the thread, as text."""
        assert self._coro is not None
        try:
            self._op = self._coro.send(result)
        except StopIteration:
            self._op = None
        except Exception as error:
            self._op = None
            return _failure(error)
        return None

    def place(self) -> tuple[Place, ...]:
        """Where it stands, outermost function first."""
        places: list[Place] = []
        awaited: Any = self._coro if self._op is not None else None
        while isinstance(awaited, CoroutineType):
            frame = awaited.cr_frame
            if frame is None:
                break
            code = frame.f_code
            _, call, arguments = self._call(len(places), awaited, code, frame)
            places.append(
                Place(code.co_qualname, code.co_filename, frame.f_lineno, call, arguments)
            )
            awaited = awaited.cr_await
        del self._calls[len(places) :]
        return tuple(places)

    def _call(
        self, depth: int, coroutine: object, code: CodeType, frame: FrameType
    ) -> tuple[object, int, Arguments]:
        """What is known of the call at ``depth``: the one seen there before, or a new one."""
        calls = self._calls
        if depth >= len(calls) or calls[depth][0] is not coroutine:
            del calls[depth:]
            self._called += 1
            local = frame.f_locals
            names = code.co_varnames[: code.co_argcount]
            arguments = tuple(
                (name, local[name]) for name in names if name in local and name != "self"
            )
            calls.append((coroutine, self._called, arguments))
        return calls[depth]

    def close(self) -> None:
        """Drop it where it stands."""
        if self._coro is not None:
            self._coro.close()


def _failure(error: Exception) -> str:
    """As the explorer words it: the exception and the innermost line of the thread's own code."""
    text = f"{type(error).__name__}: {error}"
    frames = [
        (frame.f_code.co_qualname, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    return text + (f" in {frames[-1][0]}, line {frames[-1][1]}" if frames else "")
