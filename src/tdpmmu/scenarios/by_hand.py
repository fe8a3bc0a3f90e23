"""A scenario driven by hand: whoever wants to says who moves next, and may take moves back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import State
from tdpmmu.render.interleaving import Scene
from tdpmmu.render.names import KernelNames
from tdpmmu.render.report import cpus
from tdpmmu.render.report.notebook import PageTables, rows_html
from tdpmmu.render.report.rows import Row
from tdpmmu.render.report.run import Owed
from tdpmmu.render.report.sync import SyncView
from tdpmmu.render.report.tables import TableView
from tdpmmu.render.words import Words
from tdpmmu.worlds.replay import Record, Replay, Run, Schedule, run_of

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question
    from tdpmmu.scenarios.token import Token


@dataclass(frozen=True, slots=True)
class Mover:
    """A thread, where it stands, and in how many ways it can move now.

    ``op`` is its next operation in words, None at its end.  ``alternatives`` is 0 where it has to
    wait; more than 1 where the world chooses, such as what a guest's access hits.
    """

    thread: int
    name: str
    chain: tuple[str, ...]
    op: str | None
    alternatives: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A property that a move has broken."""

    prop: str
    kind: str
    sentence: str
    turns: tuple[_Turn, ...]


@dataclass(frozen=True, slots=True)
class _Turn:
    thread: int
    alternatives: tuple[int, ...]


class World:
    """One scenario on one kernel, with every property watching.

    ``records`` are all operations so far, ``broken`` the properties that one of them has broken.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._moves: list[tuple[int, int]] = []
        self.records: list[Record] = []
        self._start()

    @classmethod
    def at_the_end_of(cls, token: Token) -> World:
        """The world in which a token's run has just ended.

        StaleToken if the code is not what it was; ValueError if the token cannot be run here.
        """
        from tdpmmu.scenarios.question import Question
        from tdpmmu.scenarios.token import StaleToken, build, check_fresh

        subject = build(token)
        if (change := check_fresh(token, subject)) is not None:
            raise StaleToken(f"{change}; it may no longer replay")
        world = cls(
            Question(
                subject.scenario,
                subject.mmu_class,
                token.kernel,
                token.patches,
                scenario_name=token.scenario,
            )
        )
        for run in token.schedule:
            for alternative in run.alternatives:
                world.move(run.thread, alternative)
        return world

    def _start(self) -> None:
        self._built = self.question.build()
        self._replay = Replay(self._built.machine, ())
        self.records.clear()
        names = [thread.name for thread in self._built.machine.threads]
        self.scene = Scene(
            self._built.kvm.hardware, self._built.machine.layout, names, self.question.mmu_class
        )
        self._names = KernelNames(self.question.mmu_class)
        self._words = Words(self.scene.hardware, self.scene.layout)
        self._owed = Owed(self.scene)
        self._owed_rows = self._owed.rows(None, self.state)

    @property
    def state(self) -> State:
        """The state now."""
        return self._replay.state

    @property
    def threads(self) -> tuple[Mover, ...]:
        """Every thread, and how it can move."""
        return tuple(
            self._mover(number, places, op)
            for number, (places, op) in enumerate(self._replay.standing())
        )

    def _mover(self, number: int, places: tuple[object, ...], op: Op | None) -> Mover:
        chain = self._names.chain(places)  # type: ignore[arg-type]
        count = 0
        machine = self._built.machine
        waits = machine.threads[number].alone and any(
            other is not None
            for one, (_, other) in enumerate(self._replay.standing())
            if not machine.threads[one].alone
        )
        if op is not None and not waits:
            count = op.alternatives(Step(self.state, number))
        text = None if op is None else op.describe()
        return Mover(number, machine.threads[number].name, chain, text, count)

    def move(self, thread: int | str, alternative: int = 0) -> Record:
        """One operation of a thread, given by number or name.

        ValueError, in a line, if it cannot move now, or has no such alternative.
        """
        number = self._number(thread)
        mover = self.threads[number]
        if mover.op is None:
            raise ValueError(f"{mover.name} has come to its end")
        if not 0 <= alternative < mover.alternatives:
            if not mover.alternatives:
                raise ValueError(f"{mover.name} has to wait at {mover.op}")
            raise ValueError(f"{mover.name} has {mover.alternatives} ways to go on: 0 is the first")
        return self._take(number, alternative)

    def _take(self, number: int, alternative: int) -> Record:
        record = self._replay.operation(len(self._moves), number, alternative)
        self._moves.append((number, alternative))
        self.records.append(record)
        self._owed_rows = self._owed.rows(record, record.after)
        return record

    def run(self, thread: int | str, most: int = 1000) -> list[Record]:
        """Let a thread go on until it has said something, must wait, has a choice, or is through.

        At least one operation, at most ``most``.
        """
        done = [self.move(thread)]
        while len(done) < most and not (self.said(done[-1]) or done[-1].violations):
            mover = self.threads[done[-1].thread]
            if mover.alternatives != 1:
                break
            done.append(self._take(mover.thread, 0))
        return done

    def strides(self) -> list[int]:
        """The moves so far in strides as :meth:`run` makes them: how many operations each has."""
        lengths: list[int] = []
        going = None
        for record in self.records:
            if record.thread == going:
                lengths[-1] += 1
            else:
                lengths.append(1)
            going = None if self.said(record) or record.violations else record.thread
        return lengths

    def back(self, moves: int = 1) -> list[tuple[int, int]]:
        """Take the last moves back, and say which they were: thread and alternative of each."""
        at = max(len(self._moves) - moves, 0)
        kept, taken = self._moves[:at], self._moves[at:]
        self._replay.close()
        self._moves = []
        self._start()
        for number, alternative in kept:
            self._take(number, alternative)
        return taken

    def _number(self, thread: int | str) -> int:
        names = list(self.scene.threads)
        if isinstance(thread, int) and 0 <= thread < len(names):
            return thread
        if thread in names:
            return names.index(str(thread))
        raise ValueError(f"no thread {thread}: there are {', '.join(names)}")

    def said(self, record: Record) -> list[str]:
        """What an operation is worth saying; nothing for most."""
        return [phrase.text for phrase in self._words.phrases(record)]

    @property
    def broken(self) -> tuple[Broken, ...]:
        """The properties that were broken so far, each at its first time."""
        found: dict[str, Broken] = {}
        for i, record in enumerate(self.records):
            told = [(ghost.name, ghost.kind, text) for ghost, text in record.violations]
            if record.failure is not None:
                told.append(("exception", "harm", record.failure))
            for name, kind, sentence in told:
                turns = tuple(_Turn(one, (choice,)) for one, choice in self._moves[: i + 1])
                found.setdefault(name, Broken(name, kind, sentence, turns))
        return tuple(found.values())

    @property
    def schedule(self) -> Schedule:
        """All moves so far; moves in a row by one thread are one run."""
        runs: list[Run] = []
        for number, alternative in self._moves:
            if runs and runs[-1].thread == number:
                runs[-1] = run_of(number, [*runs[-1].alternatives, alternative])
            else:
                runs.append(run_of(number, [alternative]))
        return tuple(runs)

    def token(self, prop: str = "") -> Token:
        """The run up to where a property (the first one, unless named) is broken, to pass on.

        ValueError if none is.
        """
        from tdpmmu.scenarios.token import make

        wanted = [one for one in self.broken if prop in ("", one.prop)]
        if not wanted:
            raise ValueError(f"{prop or 'no property'} is{' not' if prop else ''} broken yet")
        question = self.question
        return make(
            question.scenario,
            question.kernel,
            question.patches,
            wanted[0],
            question.attach,
            scenario_name=question.scenario_name,
        )

    @property
    def tables(self) -> PageTables:
        """The page tables now."""
        return PageTables(tuple(TableView(self.scene.hardware).rows(self.state)))

    def panels(self) -> dict[str, list[Row]]:
        """The state in words: page tables, vCPUs, locks, and what a flush is owed for."""
        scene = self.scene
        return {
            "Page tables": TableView(scene.hardware).rows(self.state),
            "vCPUs": list(cpus.rows(scene.hardware, self.state)),
            "Locks": list(SyncView(scene.layout, scene.threads).rows(self.state)),
            "A flush is owed for": self._owed_rows,
        }

    def _repr_html_(self) -> str:
        """For notebooks: who can move, and the state."""
        movers = [
            Row(one.name, 0, one.name, one.op or "has come to its end", "busy" if one.alternatives
                else "idle", " > ".join(one.chain))
            for one in self.threads
        ]  # fmt: skip
        parts = {f"After {len(self.records)} operations": movers, **self.panels()}
        return "".join(rows_html(title, rows) for title, rows in parts.items())
