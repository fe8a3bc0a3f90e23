"""RCU and SRCU with real grace periods.

A grace period ends when every reader that was inside a section at ``call_rcu`` has left it.  The
callback runs at that very moment: the earliest is the worst for whoever still uses the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tdpmmu.events.records import BadUnlock, LockReleased, LockTaken, MightSleep
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Op, Step
from tdpmmu.machine.state import Layout


class Callback(Protocol):
    """What ``call_rcu`` takes: something that is told when its grace period is over."""

    def grace_period_over(self, step: Step) -> None:
        """The ``rcu_head``'s function."""

    def grace_period_starts(self, step: Step) -> None:
        """Called at once, so that the memory is known to wait."""


class Rcu:
    """One RCU domain: nesting depth by thread, and the callbacks that wait, with whom they wait
    for.
    """

    __slots__ = (
        "called_under_lock",
        "may_call",
        "mode",
        "name",
        "nesting",
        "nobody_calls",
        "pending",
        "unawaited",
        "unused",
    )

    def __init__(
        self, layout: Layout, name: str, threads: int, *, chunk: int, sleepable: bool = False
    ) -> None:
        self.name = name
        self.mode = "srcu" if sleepable else "rcu"
        self.unused = layout.assumption(f"nobody waits for {name}") if sleepable else None
        self.called_under_lock = layout.assumption(
            f"grace periods of {name} start under the lock that shuts others out of it"
        )
        self.unawaited = layout.assumption(f"nobody waits for the callbacks of {name}")
        self.nobody_calls: Callable[[Step], bool] = lambda step: False
        self.may_call: Callable[[Step], bool] = lambda step: True
        self.nesting = layout.cell(f"{name}.nesting", (0,) * threads, chunk=chunk)
        self.pending = layout.cell(f"{name}.callbacks", (), chunk=chunk)

    def position_key(self) -> str:
        return self.name

    async def read_lock(self) -> None:
        """``rcu_read_lock`` / ``srcu_read_lock``."""
        await ReadLock(self)

    async def read_unlock(self) -> None:
        """``rcu_read_unlock`` / ``srcu_read_unlock``."""
        await ReadUnlock(self)

    async def call(self, callback: Callback) -> None:
        """``call_rcu``."""
        await Call(self, callback)

    async def barrier(self) -> None:
        """``rcu_barrier``: wait until no callback is left."""
        await Barrier(self)

    async def synchronize(self) -> None:
        """``synchronize_rcu`` / ``synchronize_srcu``: wait for the readers of this moment."""
        ticket = await Snapshot(self)
        await WaitGrace(self, ticket)

    def invisible(self) -> bool:
        """Whether, as far as is known, no thread ever waits for these readers."""
        return self.unused is not None and self.unused.trusted

    def nobody_else_calls(self, step: Step) -> bool:
        """Whether no other thread can start a grace period now."""
        return self.called_under_lock.trusted and self.nobody_calls(step)

    def grace_period_starts(self, step: Step) -> None:
        """Take note if that happens where others rely on it not to."""
        if not self.may_call(step):
            step.broken.append(self.called_under_lock)
        if self.unused is not None:
            step.broken.append(self.unused)

    def reading(self, step: Step) -> bool:
        """Whether the running thread is inside a read-side section."""
        return bool(step[self.nesting][step.thread] > 0)

    def readers(self, step: Step) -> int:
        """The threads inside a section, as a bit mask."""
        return sum(1 << i for i, depth in enumerate(step[self.nesting]) if depth)


def _nest(step: Step, rcu: Rcu, by: int) -> int:
    depths: list[int] = list(step[rcu.nesting])
    depths[step.thread] += by
    step[rcu.nesting] = tuple(depths)
    return depths[step.thread]


@dataclass(frozen=True, slots=True)
class ReadLock(Op):
    """Enter a read-side section."""

    rcu: Rcu

    def apply(self, step: Step, alternative: int) -> None:
        _nest(step, self.rcu, 1)
        step.emit(LockTaken(self.rcu.name, self.rcu.mode))

    def mover(self, step: Step) -> str:
        # Where nobody else can start a grace period, nobody can tell when the section began.
        return BOTH if self.rcu.invisible() or self.rcu.nobody_else_calls(step) else RIGHT

    def describe(self) -> str:
        return f"{self.rcu.mode}_read_lock()"


@dataclass(frozen=True, slots=True)
class ReadUnlock(Op):
    """Leave it; callbacks that waited for this reader alone run now."""

    rcu: Rcu

    def apply(self, step: Step, alternative: int) -> None:
        rcu = self.rcu
        if not rcu.reading(step):
            step.emit(BadUnlock(rcu.name, rcu.mode))
            return
        step.emit(LockReleased(rcu.name, rcu.mode))
        if _nest(step, rcu, -1) == 0:
            _reader_gone(step, rcu, 1 << step.thread)

    def mover(self, step: Step) -> str:
        rcu = self.rcu
        if rcu.invisible():
            return BOTH
        # Nor can anybody tell when it ended, unless a callback waits for that.
        awaited = any(mask >> step.thread & 1 for _, mask in step[rcu.pending])
        return BOTH if not awaited and rcu.nobody_else_calls(step) else LEFT

    def describe(self) -> str:
        return f"{self.rcu.mode}_read_unlock()"


def _reader_gone(step: Step, rcu: Rcu, bit: int) -> None:
    waiting = []
    over: list[Any] = []
    for callback, mask in step[rcu.pending]:
        mask &= ~bit
        if mask:
            waiting.append((callback, mask))
        else:
            over.append(callback)
    step[rcu.pending] = tuple(waiting)
    for callback in over:
        if not isinstance(callback, int):
            callback.grace_period_over(step)


@dataclass(frozen=True, slots=True)
class Call(Op):
    """``call_rcu``."""

    rcu: Rcu
    callback: Callback

    def apply(self, step: Step, alternative: int) -> None:
        readers = self.rcu.readers(step)
        self.rcu.grace_period_starts(step)
        self.callback.grace_period_starts(step)
        if readers:
            step[self.rcu.pending] = (*step[self.rcu.pending], (self.callback, readers))
        else:
            self.callback.grace_period_over(step)

    def mover(self, step: Step) -> str:
        # Earlier is worse for those who still use the memory, but a reader that starts later
        # than the call is not waited for: queueing earlier loses nothing, unless somebody waits for
        # the callback.
        return LEFT if self.rcu.unawaited.trusted else NEITHER

    def describe(self) -> str:
        return f"call_rcu({self.callback!r})"


@dataclass(frozen=True, slots=True)
class Barrier(Op):
    """``rcu_barrier``."""

    rcu: Rcu

    def alternatives(self, step: Step) -> int:
        return 0 if step[self.rcu.pending] else 1

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(MightSleep("rcu_barrier"))
        step.broken.append(self.rcu.unawaited)

    def mover(self, step: Step) -> str:
        return RIGHT

    def describe(self) -> str:
        return "rcu_barrier()"


@dataclass(frozen=True, slots=True)
class Snapshot(Op):
    """The first half of ``synchronize``: note whom to wait for.  The result is a ticket."""

    rcu: Rcu

    @property
    def may_block(self) -> bool:
        return True  # the wait begins here

    def apply(self, step: Step, alternative: int) -> int:
        step.emit(MightSleep(f"synchronize_{self.rcu.mode}"))
        self.rcu.grace_period_starts(step)
        readers = self.rcu.readers(step)
        if readers:
            step[self.rcu.pending] = (*step[self.rcu.pending], (step.thread, readers))
        return step.thread

    def mover(self, step: Step) -> str:
        return NEITHER

    def describe(self) -> str:
        return f"synchronize_{self.rcu.mode}()"


@dataclass(frozen=True, slots=True)
class WaitGrace(Op):
    """The second half: block until they have left."""

    rcu: Rcu
    ticket: int

    def alternatives(self, step: Step) -> int:
        return 0 if any(who == self.ticket for who, _ in step[self.rcu.pending]) else 1

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return RIGHT

    def describe(self) -> str:
        return f"wait for the {self.rcu.mode} grace period"
