"""Operations as look-ups: how one moves, and what it does, by the chunks that it looks at.

An operation of one thread looks at a few chunks only, and many positions have the same operation
before them; so the MMU's and the properties' code runs once for all states that agree on those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Choose, Op, Step
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.chunks import ChunkTable, ChunkView
from tdpmmu.worlds.explore.memo import Found, Memo
from tdpmmu.worlds.explore.position.table import Positions
from tdpmmu.worlds.explore.reductions import BEGIN, MOVERS, URGENT, WAITS, Reduce, reductions


class Mistrust(Exception):
    """A guard was not kept to; it has lost its trust, and the search has to start again."""


Violations = tuple[tuple[Ghost, str], ...]

MOVES, ACTS, ORDERS, QUESTIONS = 0, 1, 2, 3
"""What can be asked of an operation."""


@dataclass(slots=True)
class Act:
    """One outcome of an operation.

    ``failure``: it raised.  ``harm``: it breaks a property of harm.
    """

    result: Any
    changes: tuple[tuple[int, int], ...]
    events: tuple[Event, ...]
    violations: Violations
    failure: str | None
    harm: bool


@dataclass(slots=True)
class Order:
    """Whether the turn may as well come first; whom the thread waits for, if it is blocked."""

    urgent: bool
    rival: int | None


Fact = tuple[int, int, tuple[int, ...], tuple[int, ...], str | tuple[Act, ...] | Order]
"""What was found out: operation, question, chunks looked at, their numbers, and the answer."""


class Deed:
    """One operation of one thread, and what is known of it."""

    __slots__ = (
        "acts",
        "alone",
        "chooses",
        "may_block",
        "movers",
        "number",
        "op",
        "orders",
        "thread",
        "vcpu",
    )

    def __init__(self, number: int, op: Op, thread: int, alone: bool) -> None:
        self.number = number
        self.op = op
        self.thread = thread
        self.alone = alone
        self.chooses = type(op) is Choose
        self.may_block = op.may_block
        self.vcpu = hasattr(op, "vcpu")
        self.movers: Memo[str] = Memo()
        self.acts: Memo[tuple[Act, ...]] = Memo()
        self.orders: Memo[Order] = Memo()


class Acts:
    """All operations of all threads of a machine.

    ``unseen``: what was to happen sometimes, and has not yet.  ``log``: all that was found out.
    """

    def __init__(
        self,
        machine: Machine,
        positions: list[Positions],
        chunks: ChunkTable,
        *,
        reduce: Reduce,
    ) -> None:
        self._machine = machine
        self._positions = positions
        self._chunks = chunks
        self._listeners = machine.listeners()
        self.reduce = reductions(reduce)
        self.inside: dict[str, set[str]] = {}
        self._by_key: list[dict[Any, Deed]] = [{} for _ in machine.threads]
        self._at: list[dict[int, Deed | None]] = [{} for _ in machine.threads]
        self.deeds: list[Deed] = []
        self.unseen = dict(machine.sometimes)
        self.log: list[Fact] = []

    def at(self, thread: int, position: int) -> Deed | None:
        """The operation that a thread is about to do; None if it has ended."""
        try:
            return self._at[thread][position]
        except KeyError:
            pass
        op = self._positions[thread].op(position)
        deed = None
        if op is not None:
            key = self._positions[thread].op_number(position)
            deed = self._by_key[thread].get(key)
            if deed is None:
                alone = self._machine.threads[thread].alone
                deed = self._by_key[thread][key] = Deed(len(self.deeds), op, thread, alone)
                self.deeds.append(deed)
        self._at[thread][position] = deed
        return deed

    def _step(self, row: Sequence[int], thread: int, looked: set[int]) -> Step:
        step = Step((), thread, self._listeners)
        step.chunks = self._chunks.view(tuple(row))
        step.looked = looked
        return step

    def mover(self, deed: Deed, row: Sequence[int], looked: set[int]) -> str:
        """How the operation moves, in this state."""
        found = deed.movers.find(row, looked)
        if found is None:
            here: set[int] = set()
            if deed.alone:
                found = BOTH
            elif MOVERS in self.reduce:
                found = deed.op.mover(self._step(row, deed.thread, here))
            else:
                found = RIGHT if deed.chooses else NEITHER
            self._add(deed, MOVES, deed.movers, here, row, found)
            looked |= here
        return found

    def early(self, deed: Deed, position: int, row: Sequence[int], looked: set[int]) -> bool:
        """Whether the operation could have come with those before it, had they known.

        As it moves left here, nothing is lost if it comes first, with all that moves left after it.
        """
        trusted = self._machine.layout.urgency.trusted
        if deed.alone or URGENT not in self.reduce or not trusted:
            return False
        if BEGIN not in self.reduce and position == self._positions[deed.thread].initial:
            return False
        return self.mover(deed, row, looked) in (LEFT, BOTH)

    def order(self, deed: Deed, row: Sequence[int], looked: set[int]) -> Order:
        """Whether a turn that begins with the operation is urgent, or waits for one thread."""
        found = deed.orders.find(row, looked)
        if found is None:
            here: set[int] = set()
            step = self._step(row, deed.thread, here)
            found = Order(
                URGENT in self.reduce and deed.op.urgent(step),
                deed.op.waits_for_kick(step) if WAITS in self.reduce else None,
            )
            self._add(deed, ORDERS, deed.orders, here, row, found)
            looked |= here
        return found

    def acts(self, deed: Deed, row: Sequence[int], looked: set[int]) -> tuple[Act, ...]:
        """Every outcome of the operation; none if it is blocked."""
        found = deed.acts.find(row, looked)
        if found is None:
            here: set[int] = set()
            step = self._step(row, deed.thread, here)
            count = deed.op.alternatives(step)
            if deed.alone and deed.chooses:
                count = 1  # nobody is there whom a choice could matter to
            found = tuple([self._act(deed, row, here, which) for which in range(count)])
            self._add(deed, ACTS, deed.acts, here, row, found)
            looked |= here
        return found

    def _add(
        self,
        deed: Deed,
        question: int,
        memo: Memo[Found],
        looked: set[int],
        row: Sequence[int],
        found: Found,
    ) -> None:
        chunks = memo.add(looked, row, found)
        values = tuple([row[chunk] for chunk in chunks])
        self.log.append((deed.number, question, chunks, values, cast(Any, found)))

    def _act(self, deed: Deed, row: Sequence[int], looked: set[int], alternative: int) -> Act:
        step = self._step(row, deed.thread, looked)
        failure = None
        result = None
        try:
            result = deed.op.apply(step, alternative)
        except AssertionError as error:
            failure = f"{deed.op.describe()}: {error!r}"
        else:
            self._note(step, deed.alone)
        number = self._chunks.number
        # In a fixed order: what a set is gone through in differs from machine to machine.
        changes = sorted(cast(ChunkView, step.chunks).changes(), key=itemgetter(0))
        return Act(
            result,
            tuple([(i, number(i, new)) for i, new in changes]),
            tuple(step.events),
            tuple(step.violations),
            failure,
            any(ghost.kind == HARM for ghost, _ in step.violations),
        )

    def _note(self, step: Step, alone: bool) -> None:
        """Tick off what was to be seen sometimes, and give up if a guard proves to be none.

        A thread that runs when all others have ended need not keep to any.
        """
        if self.unseen:
            for event in step.events:
                for label in [k for k, shows in self.unseen.items() if shows(event, step)]:
                    del self.unseen[label]
        if not self.reduce or alone:
            return
        for outer, inner, order in reversed(step.nested):
            if not order.trusted or inner in self.inside.get(outer, ()):
                continue
            self.inside.setdefault(outer, set()).add(inner)
            if self.leads(inner, outer):
                step.broken.append(order)
        broken = [guard for guard in step.broken if guard.trusted]
        for guard in broken:
            guard.trusted = False
        if broken:
            raise Mistrust(", ".join(guard.name for guard in broken))

    def leads(self, lock: str, to: str) -> bool:
        """Whether ``to`` is taken inside ``lock``, directly or not."""
        seen: set[str] = set()
        todo = [lock]
        while todo:
            outer = todo.pop()
            if outer == to:
                return True
            if outer not in seen:
                seen.add(outer)
                todo += self.inside.get(outer, ())
        return False
