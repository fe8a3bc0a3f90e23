"""The positions of one thread, numbered."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.liveness import CodeFacts
from tdpmmu.worlds.explore.position import encoding
from tdpmmu.worlds.explore.position.coroutines import LIVE_LIMIT, Coroutines, close
from tdpmmu.worlds.explore.position.failure import Failure, Line, failure_of
from tdpmmu.worlds.explore.position.frames import Key
from tdpmmu.worlds.explore.position.refusal import Unencodable, UnsupportedPosition
from tdpmmu.worlds.explore.position.standing import Standing
from tdpmmu.worlds.explore.position.visit import Mark

_FINISHED: Final = Mark("finished")
_RAISED: Final = Mark("raised")


class Positions:
    """The positions of one thread, and the steps between them as far as known.

    ``steps`` has those in the order in which they were found: position, result, position.
    """

    def __init__(
        self, start: Callable[[], Coroutine[Any, Any, Any]], live_limit: int = LIVE_LIMIT
    ) -> None:
        self._coroutines = Coroutines(start, live_limit)
        self._part_numbers: dict[Hashable, int] = {}
        self._parts: list[Any] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._keys: list[tuple[int, ...]] = []
        self._ops: list[Op | None] = []
        self._came_from: list[tuple[int, Any] | None] = []
        self._next: dict[tuple[int, Hashable], int] = {}
        self._raised: dict[int, Failure] = {}
        self.steps: list[tuple[int, Hashable, int]] = []
        self.replays = 0
        self.misses = 0
        self.initial = self._advance(self._coroutines.begin(), None, None)

    def __len__(self) -> int:
        return len(self._keys)

    def op(self, pos: int) -> Op | None:
        """The pending operation; None if the thread has finished or raised."""
        return self._ops[pos]

    def op_number(self, pos: int) -> int:
        """What tells the pending operation from others."""
        return self._keys[pos][-1]

    def key(self, pos: int) -> Key:
        """What tells it from other positions: the keys of its frames and of its operation."""
        return tuple([self._parts[number] for number in self._keys[pos]])

    def next(self, pos: int, result: Any) -> int:
        """The position after the pending operation returned ``result``."""
        kind = type(result)
        typed: Hashable
        typed = result if kind is int or kind is str or result is None else self.typed(result)
        known = self._next.get((pos, typed))
        if known is not None:
            return known
        if self._ops[pos] is None:
            raise ValueError(f"position {pos} has no pending operation")
        self.misses += 1
        standing = self._coroutines.take(pos) or self._replay(pos)
        new = self._next[pos, typed] = self._advance(standing, pos, result)
        self.steps.append((pos, typed, new))
        return new

    def raised(self, pos: int) -> BaseException | None:
        """The exception with which the thread ended here, if it did."""
        found = self._raised.get(pos)
        return None if found is None else found.exception

    def traceback(self, pos: int) -> str:
        """The traceback text of :meth:`raised`, empty without one."""
        found = self._raised.get(pos)
        return "" if found is None else found.text

    def path(self, pos: int) -> list[Any]:
        """Results that lead here from the start."""
        results = []
        step = self._came_from[pos]
        while step is not None:
            results.append(step[1])
            step = self._came_from[step[0]]
        return results[::-1]

    def line(self, pos: int) -> list[Line]:
        """Where it stands: the lines of the frames, innermost last; none if finished."""
        found = self._raised.get(pos)
        if found is not None:
            return found.lines
        if self._ops[pos] is None:
            return []
        frames = []
        key: Any = self.key(pos)
        for frame in key[:-1]:
            facts: CodeFacts = frame[0]
            code = facts.code
            frames.append((code.co_qualname, code.co_filename, facts.line(frame[1])))
        return frames

    def frames(self, pos: int) -> list[tuple[tuple[str, int], dict[str, Hashable]]]:
        """Where it stands, as functions and instructions, with what the key has of live locals.

        What is half-evaluated goes by ``#0``, ``#1``, ...; none if finished.
        """
        if self._ops[pos] is None:
            return []
        found = []
        key: Any = self.key(pos)
        for frame in key[:-1]:
            facts: CodeFacts = frame[0]
            names = [facts.slots[slot][0] for slot in facts.site(frame[1]).live]
            names += [f"#{i}" for i in range(len(frame) - 3 - len(names))]
            here = facts.code.co_qualname, frame[1]
            found.append((here, dict(zip(names, frame[3:], strict=True))))
        return found

    def close(self) -> None:
        """Let go of all coroutines; the table stays, and replays as needed."""
        self._coroutines.close()

    # -- how positions come about ------------------------------------------------------------

    def typed(self, result: Any) -> Hashable:
        """What tells a result from others: 1 from True, too."""
        visit = encoding.visit()
        try:
            typed = visit.encode(result)
            if visit.mutable is not None:
                raise Unencodable(visit.mutable)
        except Unencodable as problem:
            raise UnsupportedPosition(
                f"the result of an operation is or holds {problem}; results must be immutable"
            ) from None
        return typed

    def _part(self, key: Hashable) -> int:
        number = self._part_numbers.setdefault(key, len(self._parts))
        if number == len(self._parts):
            self._parts.append(key)
        return number

    def _advance(self, standing: Standing, before: int | None, result: Any) -> int:
        """Send ``result`` and intern where the thread stands then."""
        op: Op | None = None
        failure: Failure | None = None
        key: tuple[int, ...]
        try:
            op = standing.coro.send(result)
        except StopIteration:
            key = (self._part(_FINISHED),)
        except Exception as exception:
            failure = failure_of(exception)
            kind: Any = type(exception)
            key = (self._part((_RAISED, kind, str(exception), *failure.lines)),)
        else:
            try:
                key = standing.key(op, self._part)
            except UnsupportedPosition:
                close(standing.coro)
                raise
        pos = self._numbers.setdefault(key, len(self._keys))
        if pos == len(self._keys):
            self._keys.append(key)
            self._ops.append(op)
            self._came_from.append(None if before is None else (before, result))
            if failure is not None:
                self._raised[pos] = failure
        if op is not None:
            self._coroutines.keep(pos, standing)
        return pos

    def _replay(self, pos: int) -> Standing:
        """A coroutine that stands at ``pos``, from the start."""
        self.replays += 1
        key: tuple[Any, ...]
        try:
            standing, op = self._coroutines.replay(self.path(pos))
            key = standing.key(op, self._part)
        except Exception as exception:
            key = (exception,)
        if key != self._keys[pos]:
            function, file, line = self.line(pos)[-1]
            raise UnsupportedPosition(
                f"{file}:{line}: {function} is not reached again by the same results; "
                "keep what a thread knows in locals, and what others see in cells"
            )
        return standing
