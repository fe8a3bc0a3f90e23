"""Where to put delays into a real kernel so that it takes the order of a run.

Wherever a thread is overtaken in the middle of its way a delay has to hold it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tdpmmu.machine.op import Op
from tdpmmu.machine.state import State
from tdpmmu.render.interleaving import Scene, Violation
from tdpmmu.render.lines import paragraph, plain
from tdpmmu.render.lock_state import held_by, may_sleep, tell
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import PlaceLike, RecordLike
from tdpmmu.render.words import Words

Stand = tuple[Sequence[PlaceLike], Op | None]
"""Where a thread stands: its calls, outermost first, and its next operation."""


@dataclass(frozen=True, slots=True)
class Delay:
    """A thread is held in the functions ``chain``, between two of its operations.

    ``step`` is the number of the first of these, ``before`` the second in words, and ``after`` the
    last one up to the first that is worth a word.  ``until`` says what somebody else has to have
    done by then; nothing if it is held to the end.  ``context`` says what the thread holds, and
    ``sleeps`` whether it may sleep there.
    """

    number: int
    thread: int
    chain: tuple[str, ...]
    after: str
    before: str
    step: int
    until: str
    context: str
    sleeps: bool
    in_guest: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One thread runs on its own from step ``first`` to ``last``."""

    thread: int
    first: int
    last: int
    begins: str
    ends: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Delays, and the order in which threads run between them."""

    delays: tuple[Delay, ...]
    turns: tuple[Turn, ...]


def plan(
    records: Sequence[RecordLike], violation: Violation, scene: Scene, standing: Sequence[Stand]
) -> Plan:
    """``standing`` says where every thread stands at the end of the run."""
    return _Planner(records, violation, scene, standing).plan()


class _Planner:
    def __init__(
        self,
        records: Sequence[RecordLike],
        violation: Violation,
        scene: Scene,
        standing: Sequence[Stand],
    ) -> None:
        self._scene = scene
        self._standing = standing
        self._names = KernelNames(scene.mmu_class)
        self._words = Words(
            scene.hardware, scene.layout, prop=violation.prop, sentence=violation.sentence
        )
        self._words.prepare(records)
        self._turns = [list(turn) for _, turn in groupby(records, lambda record: record.thread)]

    def plan(self) -> Plan:
        delays: list[Delay] = []
        turns: list[Turn] = []
        at: dict[int, str] = {}
        for i, turn in enumerate(self._turns):
            last = turn[-1]
            begins = at.get(last.thread, "its start")
            ends = "its end"
            delay = self._delay(i, len(delays) + 1) if i + 1 < len(self._turns) else None
            if i + 1 == len(self._turns):
                ends = "what goes wrong"
            elif delay is not None:
                delays.append(delay)
                ends = f"delay {delay.number}"
            at[last.thread] = ends
            turns.append(Turn(last.thread, turn[0].number, last.number, begins, ends))
        return Plan(tuple(delays), tuple(turns))

    def _delay(self, i: int, number: int) -> Delay | None:
        """What holds the thread of turn ``i`` at its end; None if it is through."""
        last = self._turns[i][-1]
        later = [turn for turn in self._turns[i + 1 :] if turn[0].thread == last.thread]
        places, op = (later[0][0].place, later[0][0].op) if later else self._standing[last.thread]
        if op is None:
            return None
        between = self._turns[i + 1 : self._turns.index(later[0])] if later else []
        held = held_by(self._scene.layout, last.after, last.thread)
        return Delay(
            number,
            last.thread,
            self._names.chain(places) or self._names.chain(last.place),
            self._last_said(self._turns[i]),
            op.describe(),
            last.number,
            self._until(between[-1]) if between else "",
            tell(held),
            may_sleep(held),
            self._in_guest(last.after, last.thread),
        )

    def _in_guest(self, state: State, thread: int) -> bool:
        return any(
            vcpu.thread == thread and state[vcpu.in_guest.chunk][vcpu.in_guest.offset]
            for vcpu in self._scene.hardware.vcpus
        )

    def _until(self, turn: Sequence[RecordLike]) -> str:
        return f"{turn[-1].name} has done: {self._last_said(turn)}"

    def _last_said(self, turn: Sequence[RecordLike]) -> str:
        """The last thing in a turn that is worth a word."""
        for record in reversed(turn):
            phrases = self._words.phrases(record)
            if phrases:
                return f"{phrases[-1].text} (step {record.number})"
        return f"{turn[-1].op.describe()} (step {turn[-1].number})"


def reproducer(
    records: Sequence[RecordLike],
    violation: Violation,
    scene: Scene,
    standing: Sequence[Stand],
    *,
    width: int = 80,
) -> str:
    """The plan as text."""
    made = plan(records, violation, scene, standing)
    names = scene.threads
    text = [*paragraph(f"Delays for {violation.kind.upper()} {violation.prop}.", width)]
    for fact in scene.facts:
        text += paragraph(fact, width, "", "", "  ")
    for delay in made.delays:
        text.append([])
        text += paragraph(f"Delay {delay.number}, on the CPU of {names[delay.thread]}:", width)
        for label, what in _fields(delay):
            text += paragraph(f"{label:<9}{what}", width, "", "  ", " " * 11)
    text += [[], [("Order:", "")]]
    for i, turn in enumerate(made.turns, 1):
        what = f"{i}. {names[turn.thread]}: from {turn.begins} to {turn.ends} "
        text += paragraph(f"{what}(steps {turn.first}-{turn.last})", width, "", "  ", "     ")
    text.append([])
    text += paragraph(_CAVEAT, width)
    return plain(text)


_CAVEAT = (
    "This is one order that goes wrong, with as few switches as the search found; others may, too. "
    "Threads that have not begun, or are at their end, need no delay. Operations are the model's: "
    "some stand for several instructions."
)


def _fields(delay: Delay) -> Iterator[tuple[str, str]]:
    if delay.in_guest:
        yield "in", "guest mode: let the guest spin, and take no exit"
    else:
        yield "in", " > ".join(delay.chain) or "the caller"
    yield "after", delay.after
    yield "before", delay.before
    how = "it may sleep (msleep)" if delay.sleeps else "busy-wait (mdelay), it must not sleep"
    if not delay.in_guest:
        yield "context", f"{delay.context}: {how}" if delay.context else how
    yield "until", delay.until or "the end of the test"
