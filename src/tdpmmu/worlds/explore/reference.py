"""The plain explorer: slow, and right for all to see.  The fast one is held against it.

It knows nothing of positions, interning, turns or reductions.  A schedule says which thread moves
next and, at a choice, with which outcome; it is run on fresh coroutines from the initial state.

:func:`enumerate_executions` runs every schedule from the start to the end, depth first.
:func:`explore_plain` judges them all.  :func:`explore_histories` finds the same with less work: it
tells situations apart by the whole state and *every result that every thread has received so far*.
:func:`equivalence_classes` counts executions up to the order of what does not conflict.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.op import Choose, Op, Step
from tdpmmu.machine.state import Cell, State
from tdpmmu.machine.thread import Machine

LONGEST = 400
"""Operations after which an execution is given up: it may go round for ever."""

DEADLOCK, EXCEPTION = "deadlock", "exception"


@dataclass(frozen=True, slots=True)
class Done:
    """One operation that was executed: by whom, with which outcome, and the cells it touched.

    ``cost`` is what it adds to the length of a counterexample: 1, but 0 for a choice, which comes
    with the operation (or the end) after it, and for what is done alone at the end.
    """

    thread: int
    op: Op
    alternative: int
    result: Any
    reads: frozenset[Cell]
    writes: frozenset[Cell]
    cost: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A property that was broken, by the last of the first ``after`` operations."""

    prop: str
    kind: str
    sentence: str
    after: int


@dataclass(frozen=True, slots=True)
class Execution:
    """One way through, to where nobody can move or something was harmed."""

    schedule: tuple[tuple[int, int], ...]
    operations: tuple[Done, ...]
    state: State
    violations: tuple[Broken, ...]
    deadlocked: bool
    complete: bool
    harmed: bool

    def cost(self, operations: int) -> int:
        """The price of the first so many operations."""
        return sum(done.cost for done in self.operations[:operations])


@dataclass(slots=True)
class PlainResult:
    """What came of it: ``shortest`` has each property that can break, with the least cost of it."""

    shortest: dict[str, int] = field(default_factory=dict)
    final: set[State] = field(default_factory=set)
    deadlocks: set[State] = field(default_factory=set)
    executions: int = 0
    exhausted: bool = False

    @property
    def violated(self) -> set[str]:
        """The names of the properties that can break, with ``deadlock`` and ``exception``."""
        return set(self.shortest)

    def found(self, prop: str, cost: int) -> None:
        """Note that a property breaks at this cost."""
        self.shortest[prop] = min(cost, self.shortest.get(prop, cost))


Histories = tuple[tuple[tuple[type, Any], ...], ...]
"""For each thread the results it has received, with their types (``1 == True`` in Python)."""


class _Watched(Step):
    """Notes which cells the operation itself reads and writes, not its guards and ghosts."""

    __slots__ = ("_aside", "reads", "writes")

    def __init__(
        self, state: State, thread: int, ghosts: dict[type[Event], list[Ghost]] | None
    ) -> None:
        super().__init__(state, thread, ghosts)
        self.reads: set[Cell] = set()
        self.writes: set[Cell] = set()
        self._aside = 0

    def __getitem__(self, cell: Cell) -> Any:
        if not self._aside:
            self.reads.add(cell)
        return super().__getitem__(cell)

    def __setitem__(self, cell: Cell, value: Any) -> None:
        if not self._aside:
            self.writes.add(cell)
        super().__setitem__(cell, value)

    def emit(self, event: Event) -> None:
        self._aside += 1
        super().emit(event)
        self._aside -= 1

    def touch(self, cell: Cell, write: bool) -> None:
        self._aside += 1
        super().touch(cell, write)
        self._aside -= 1


class _Run:
    """Threads on a state, moved by hand."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.state = machine.initial
        self.done: list[Done] = []
        self.broken: list[Broken] = []
        self.ops: list[Op | None] = [None] * len(machine.threads)
        self._listeners = machine.listeners()
        self._bodies = [thread.start() for thread in machine.threads]
        for thread in range(len(machine.threads)):
            error = self._send(thread, None)
            if error is not None:
                self.broken.append(Broken(EXCEPTION, HARM, repr(error), 0))

    def _send(self, thread: int, result: Any) -> Exception | None:
        """Run a thread to its next operation; an exception that ends it is returned."""
        self.ops[thread] = None
        try:
            self.ops[thread] = self._bodies[thread].send(result)
        except StopIteration:
            pass
        except Exception as error:
            return error
        return None

    def resume(self, state: State, histories: Histories) -> _Run:
        """Put the threads where the results that they received lead them."""
        self.state = state
        for thread, results in enumerate(histories):
            for _, result in results:
                self._send(thread, result)
        return self

    def harmed(self) -> bool:
        """Whether there is no point in going on."""
        return any(broken.kind == HARM for broken in self.broken)

    def _everybody_else_ended(self) -> bool:
        threads = self.machine.threads
        return all(op is None or threads[t].alone for t, op in enumerate(self.ops))

    def moves(self) -> list[tuple[int, int]]:
        """Who can move, with which outcomes.  ``alone`` threads wait for all others to end."""
        if self.harmed():
            return []
        late = self._everybody_else_ended()
        return [
            (thread, alternative)
            for thread, op in enumerate(self.ops)
            if op is not None and (late or not self.machine.threads[thread].alone)
            for alternative in range(op.alternatives(Step(self.state, thread)))
        ]

    def move(self, thread: int, alternative: int) -> None:
        """One operation, and the thread's own code up to its next."""
        op = self.ops[thread]
        assert op is not None
        step = _Watched(self.state, thread, self._listeners)
        op.alternatives(step)
        result = None
        error: Exception | None = None
        try:
            result = op.apply(step, alternative)
        except Exception as raised:
            error = raised
        self.state = step.state
        number = len(self.done) + 1
        for ghost, sentence in step.violations:
            self.broken.append(Broken(ghost.name, ghost.kind, sentence, number))
        if error is None:
            error = self._send(thread, result)
        if error is not None:
            self.broken.append(Broken(EXCEPTION, HARM, repr(error), number))
        free = type(op) is Choose and self.ops[thread] is not None
        self.done.append(
            Done(
                thread,
                op,
                alternative,
                result,
                frozenset(step.reads),
                frozenset(step.writes),
                0 if free or self.machine.threads[thread].alone else 1,
            )
        )

    def stuck(self) -> bool:
        """Whether somebody waits for ever."""
        return any(op is not None for op in self.ops) and not self.moves() and not self.harmed()

    def complete(self) -> bool:
        """Whether everybody has ended, and well."""
        return all(op is None for op in self.ops) and not self.harmed()

    def execution(self) -> Execution:
        """What has happened so far."""
        return Execution(
            tuple([(done.thread, done.alternative) for done in self.done]),
            tuple(self.done),
            self.state,
            tuple(self.broken),
            self.stuck(),
            self.complete(),
            self.harmed(),
        )

    def close(self) -> None:
        """Drop the threads."""
        for body in self._bodies:
            body.close()


# --- every schedule -----------------------------------------------------------------------------


def enumerate_executions(machine: Machine, limit: int | None = None) -> Iterator[Execution]:
    """Every execution, each once, in the order of the schedules; at most ``limit``.

    One of more than ``LONGEST`` operations ends there, neither complete nor deadlocked.
    """
    schedule: list[tuple[int, int]] = []
    untried: list[list[tuple[int, int]]] = []
    count = 0
    while limit is None or count < limit:
        run = _Run(machine)
        for thread, alternative in schedule:
            run.move(thread, alternative)
        while len(schedule) < LONGEST and (moves := run.moves()):
            schedule.append(moves[0])
            untried.append(moves[1:])
            run.move(*moves[0])
        yield run.execution()
        run.close()
        count += 1
        while untried and not untried[-1]:
            untried.pop()
            schedule.pop()
        if not untried:
            return
        schedule[-1] = untried[-1].pop(0)


def replay(machine: Machine, schedule: Sequence[tuple[int, int]]) -> Execution:
    """Run one schedule of ``(thread, outcome)``; ``ValueError`` if it is impossible."""
    run = _Run(machine)
    for number, move in enumerate(schedule):
        if move not in run.moves():
            raise ValueError(f"move {number} of thread {move[0]} is impossible")
        run.move(*move)
    return run.execution()


def explore_plain(machine: Machine, budget: int | None = None) -> PlainResult:
    """Run every execution; give up after ``budget`` of them."""
    result = PlainResult()
    for execution in enumerate_executions(machine, None if budget is None else budget + 1):
        if budget is not None and result.executions == budget:
            return result
        result.executions += 1
        for broken in execution.violations:
            result.found(broken.prop, execution.cost(broken.after))
        if execution.deadlocked:
            result.found(DEADLOCK, execution.cost(len(execution.operations)))
            result.deadlocks.add(execution.state)
        elif execution.complete:
            result.final.add(execution.state)
        elif not execution.harmed:
            return result  # it went on for too long
    result.exhausted = True
    return result


# --- every situation, told apart by all that has happened to the threads ------------------------

Situation = tuple[State, Histories, Hashable]
"""The third part is nothing, or what :func:`_conflicts` remembers."""


def explore_histories(machine: Machine, budget: int | None = None) -> PlainResult:
    """The same as :func:`explore_plain`; ``budget`` counts situations.

    Executions are counted without being run one by one: as the ways that lead to their ends.
    """
    return _explore(machine, budget, traces=False)[0]


def equivalence_classes(machine: Machine, budget: int | None = None) -> int:
    """Complete executions up to the order of operations that do not conflict (Mazurkiewicz traces).

    Two operations conflict if they touch the same cell and one of them changes it.
    """
    result, complete = _explore(machine, budget, traces=True)
    if not result.exhausted:
        raise OverflowError("the budget is used up")
    return complete


def trace(operations: tuple[Done, ...]) -> Hashable:
    """What equivalent executions have in common: the order of what conflicts, and the results."""
    seen: Hashable = ()
    histories: Histories = ((),) * (1 + max((done.thread for done in operations), default=0))
    for done in operations:
        seen = _conflicts(seen, done, len(histories[done.thread]))
        histories = _extended(histories, done)
    return histories, seen


def _explore(machine: Machine, budget: int | None, traces: bool) -> tuple[PlainResult, int]:
    result = PlainResult()
    begin = _Run(machine)
    for broken in begin.broken:
        result.found(broken.prop, 0)
    # Every situation of one length: the number of ways to it, the least cost of one.
    level: dict[Situation, tuple[int, int]]
    level = {(begin.state, ((),) * len(begin.ops), ()): (1, 0)}
    complete = length = looked = 0
    while level:
        following: dict[Situation, tuple[int, int]] = {}
        for (state, histories, seen), (ways, cost) in level.items():
            looked += 1
            if length > LONGEST or (budget is not None and looked > budget):
                return result, complete
            here = _Run(machine).resume(state, histories)
            moves = here.moves()
            if not moves:
                result.executions += ways
                if here.stuck():
                    result.found(DEADLOCK, cost)
                    result.deadlocks.add(state)
                elif here.complete():
                    result.final.add(state)
                    complete += 1
            for thread, alternative in moves:
                run = _Run(machine).resume(state, histories)
                run.move(thread, alternative)
                done = run.done[0]
                price = cost + done.cost
                for broken in run.broken:
                    result.found(broken.prop, price)
                if run.harmed():
                    result.executions += ways
                    continue
                more = _conflicts(seen, done, len(histories[thread])) if traces else ()
                after = (run.state, _extended(histories, done), more)
                known = following.get(after, (0, price))
                following[after] = (known[0] + ways, min(known[1], price))
        level = following
        length += 1
    result.exhausted = True
    return result, complete


def _extended(histories: Histories, done: Done) -> Histories:
    mine = (*histories[done.thread], (type(done.result), done.result))
    return (*histories[: done.thread], mine, *histories[done.thread + 1 :])


def _conflicts(seen: Any, done: Done, number: int) -> Hashable:
    """For each cell its writes in their order, with the set of reads between two of them.

    An operation is its thread and its ``number`` in the thread.
    """
    me = (done.thread, number)
    cells = dict(seen)
    for cell in done.reads | done.writes:
        past = cells.get(cell.key, ())
        if cell in done.writes:
            past = (*past, me)
        elif past and type(past[-1]) is frozenset:
            past = (*past[:-1], past[-1] | {me})
        else:
            past = (*past, frozenset({me}))
        cells[cell.key] = past
    return tuple(sorted(cells.items(), key=lambda item: item[0]))
