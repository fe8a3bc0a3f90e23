"""Run the model's calls in the order in which the kernel's threads have traced what they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

from tdpmmu.arch.table import ClearSpteBits, CmpXchgSpte, WriteSpte, XchgSpte
from tdpmmu.conformance.replay.traced import Traced
from tdpmmu.events.records import Event
from tdpmmu.kernel.locks import Acquire, SpinRelease
from tdpmmu.kernel.rcu import WaitGrace
from tdpmmu.machine.op import Choose, Op
from tdpmmu.worlds.live import LiveCall, Memory

_WRITES = (WriteSpte, XchgSpte, CmpXchgSpte, ClearSpteBits)

TRAIL = 12
"""How many operations a call remembers."""


class Stuck(Exception):
    """A call of the model waits for a lock which nobody gives back; the message says which."""


class Running(LiveCall):
    """A call on its way, which remembers what it did last."""

    def __init__(
        self, body: Coroutine[Op, Any, Any], memory: Memory, thread: int, driver: Driver
    ) -> None:
        self._coroutine = body
        self.trail: deque[tuple[Op, Any]] = deque(maxlen=TRAIL)
        super().__init__(body, memory, thread, driver.choose)

    def place(self) -> tuple[str, ...]:
        """Its call stack: function and line, outermost first."""
        places = []
        awaited: Any = self._coroutine
        while isinstance(awaited, CoroutineType):
            frame = awaited.cr_frame
            if frame is None:
                break
            places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
            awaited = awaited.cr_await
        return tuple(places)

    def _send(self, result: Any) -> None:
        op = getattr(self, "op", None)
        if op is not None:
            self.trail.append((op, result))
        super()._send(result)


class Driver:
    """The calls that are on their way, and the memory they share.

    ``returned`` hears what a call has emitted once it is over.
    ``rwlock_needbreak is true for whoever stands in the way of a call that has to go on.
    """

    def __init__(
        self, memory: Memory, threads: int, returned: Callable[[list[Event]], None]
    ) -> None:
        self.memory = memory
        self._returned = returned
        self.running: list[Running] = []
        self._free = list(reversed(range(threads)))
        self._contended = False
        self.late_readers = 0

    def choose(self, op: Op, alternatives: int) -> int:
        """The world's choices: a lock is broken only if somebody wants it."""
        return int(self._contended and isinstance(op, Choose) and "need_resched" in op.what)

    def start(self, body: Coroutine[Op, Any, Any]) -> Running:
        """Begin a call."""
        call = Running(body, self.memory, self._free.pop(), self)
        self.running.append(call)
        return call

    def next_traced(self, call: Running, *, loses: bool = False) -> Traced | None:
        """Let it go on to its next tracepoint; None at its end.  Stuck if it cannot.

        ``loses``: somebody is always first where it tries to change an entry.
        """
        while call.op is not None:
            if isinstance(call.op, Traced):
                return call.op
            if call.blocked():
                self._make_way(call)
            if loses and isinstance(call.op, CmpXchgSpte):
                call.answer(False)
            else:
                call.go()
        self._retire(call)
        return None

    def to_publication(self, call: Running) -> None:
        """Let it go on until it waits for those who may not have seen what it has published."""
        while call.op is not None and not isinstance(call.op, WaitGrace):
            if call.blocked():
                self._make_way(call)
            call.go()

    def to_first_write(self, call: Running) -> None:
        """Let it go on until it is about to change an SPTE, or is at its end.  Stuck: it cannot.

        Or until it takes a lock for read: when it does so shows only in its first change.
        """
        while call.op is not None and not isinstance(call.op, (Traced, *_WRITES)):
            if isinstance(call.op, Acquire) and call.op.mode == "read":
                return
            if call.blocked():
                self._make_way(call)
            call.go()
        if call.done:
            self._retire(call)

    def to_listing(self, call: Running) -> None:
        """Let it go on until it gives ``tdp_mmu_pages_lock`` back, but not to a further SPTE."""
        while call.op is not None and not isinstance(call.op, (Traced, *_WRITES)):
            if call.blocked():
                self._make_way(call)
            if isinstance(call.go(), SpinRelease):
                return
        if call.done:
            self._retire(call)

    def drop(self, call: Running) -> None:
        """Forget a call where it stands, locks and all."""
        call.close()
        self._retire(call)

    def _retire(self, call: Running) -> None:
        if call in self.running:
            self.running.remove(call)
            self._returned(call.events())
            self._free.append(call.thread)

    def _make_way(self, call: Running) -> None:
        """Let others go on until they no longer hold what ``call`` waits for.

        Readers of memslots need not: the kernel has not waited for those that still go on, so they
        have begun after the publication.
        """
        wanted = call.op
        assert wanted is not None
        if isinstance(wanted, WaitGrace):
            self.late_readers += 1
            return
        self._contended = True
        try:
            for other in [one for one in self.running if one is not call]:
                while call.blocked() and not isinstance(other.op, Traced | None):
                    if other.blocked():
                        break
                    other.go()
                if other.done:
                    self._retire(other)
                if not call.blocked():
                    return
        finally:
            self._contended = False
        raise Stuck(wanted.describe())
