"""The replay itself: every SPTE change of a trace against what the model does in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.conformance.replay.bodies import Bodies
from tdpmmu.conformance.replay.calls import Armed, Call, Kind, PageGot, PageZap, Seen
from tdpmmu.conformance.replay.compare import BY_HARDWARE, OTHERS, Comparison, traced_as
from tdpmmu.conformance.replay.driver import Driver, Running, Stuck
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.order import Order
from tdpmmu.conformance.replay.result import Divergence, Result, count
from tdpmmu.conformance.replay.resync import Resync, let_go_of_locks
from tdpmmu.conformance.replay.show import show, show_model, value
from tdpmmu.conformance.replay.threads import Threads
from tdpmmu.conformance.replay.traced import Changed, Requested, Sets, Traced, What
from tdpmmu.conformance.replay.untraced import Untraced
from tdpmmu.conformance.replay.vm import THREADS
from tdpmmu.trace.fields import SetSpte, SpteChange

MAX_DIVERGENCES = 20

LATE_READERS = "calls that began after a memslot was published, for nobody waited for them"

START, PUBLISH, GO, EVENT, LIST, END = range(6)
"""At one line: a call starts, publishes memslots, goes to its first change, traces, ends."""

AT_ONCE = frozenset(
    {
        Kind.LOG_ON,
        Kind.LOG_OFF,
        Kind.GET_LOG,
        Kind.CLEAR_LOG,
        Kind.SLOT_CREATE,
        Kind.SLOT_DELETE,
        Kind.ZAP_ALL,
        Kind.PARAMETER,
    }
)
"""Kinds of calls whose first sign comes when they hold their lock or have published a memslot."""


class Replay:
    """One trace, one VM, one kernel's model."""

    def __init__(
        self, found: Threads, fmt: SpteFormat, kernel: type[Any], result: Result, ratio: int
    ) -> None:
        self.result = result
        self._format = fmt
        self._calls = found.calls
        self._bodies = Bodies(found, fmt, kernel, result, ratio)
        self._untraced = Untraced(fmt, result.untraced)
        memory = self._bodies.kvm.layout.memory()
        self._driver = Driver(memory, THREADS, self._untraced.returned)
        self._names = Names(fmt)
        self._compared = Comparison(fmt, self._names, memory, result)
        self._order = Order(self._bodies.kvm, fmt, self._names, self._go_on)
        self._resync = Resync(self._bodies.kvm, fmt, self._names, self._order)
        self._running: dict[Call, Running] = {}
        self._broken: set[Call] = set()
        self._late: dict[Call, int] = {}
        self._has = {type(seen) for call in self._calls for _, seen in call.seen}

    def run(self) -> None:
        """Replay all of it."""
        for line, what, call, seen in _in_order(self._calls):
            self._bodies.guest.until(line)
            if seen is not None:
                self._compare(call, line, seen)
                self._order.compared(call)
            elif what == END:
                self._order.ends(call)
                if call not in self._broken:
                    self._finish(call, line)
                self._finish_late()
            elif what == START:
                self._order.begins(call)
            elif what == LIST:
                if call in self._running and call not in self._broken:
                    self._begin(call, line, self._driver.to_listing)
            elif what == PUBLISH and call not in self._broken:
                self._begin(call, line, self._driver.to_publication)
            elif call not in self._broken:
                self._begin(call, line, self._driver.to_first_write)
        self._finish_late(at_last=True)
        count(self.result.inputs, "writes seen before they were traced", self._order.chained)
        count(self.result.explained, BY_HARDWARE, self._order.by_hardware)
        count(self.result.inferred, LATE_READERS, self._driver.late_readers)

    # --- calls ----------------------------------------------------------------------------------

    def _begin(self, call: Call, line: int, to: Callable[[Running], None]) -> None:
        """Take a call to where others see it, or to its first change."""
        self._order.before_all(call)
        running = self._running.get(call)
        if running is None:
            running = self._running[call] = self._driver.start(self._bodies.body(call))
        try:
            to(running)
        except Stuck as stuck:
            self._diverge(call, line, call.kind.value, f"waits: {stuck}")

    def _go_on(self, call: Call) -> bool:
        """Take a call to its next change, so that others find what it wrote; false: it is there."""
        if call in self._broken:
            return False
        running = self._running.get(call)
        if running is None:
            running = self._running[call] = self._driver.start(self._bodies.body(call))
        moved = not isinstance(running.op, Traced)
        try:
            while (traced := self._driver.next_traced(running)) is not None:
                if not isinstance(traced.what, Requested | Armed):
                    break
                running.answer(None)
        except Stuck:
            return False  # it will have to wait for its own turn
        return moved

    def _finish_late(self, *, at_last: bool = False) -> None:
        """Calls that waited for a lock when last seen; at the end of the trace none must wait."""
        for call, line in list(self._late.items()):
            del self._late[call]
            self._finish(call, line, waits=not at_last)

    def _finish(self, call: Call, line: int, *, waits: bool = True) -> None:
        """The kernel's call is over: so must the model's be, without another change.

        ``waits``: its last event may be long before its end, so that it may wait for others.
        """
        if call.cut and not call.lost:
            return
        running = self._running.get(call)
        if running is None:
            if not self._worth_running(call):
                return
            running = self._running[call] = self._driver.start(self._bodies.body(call))
        try:
            if call.lost:
                count(self.result.inferred, "faults that lost an entry to somebody else")
            while (traced := self._driver.next_traced(running, loses=call.lost)) is not None:
                further = isinstance(traced.what, Changed | Sets | PageGot | PageZap)
                if further and not self._optional(traced.what):
                    model = show_model(traced.what)
                    self._diverge(call, line, "no further change", model)
                    return
                running.answer(None)
        except Stuck as stuck:
            if waits:
                self._late[call] = line
            else:
                self._diverge(call, line, "no further change", f"waits: {stuck}")

    def _worth_running(self, call: Call) -> bool:
        """Whether a call that changed nothing says that the model must not, either."""
        if call.kind is Kind.FAULT:
            count(self.result.inputs, "guest faults that came to nothing (retried before the lock)")
            return False
        if call.kind is Kind.RECOVER:
            # Tables of a logged memslot leave the list, and no event tells.
            return call.silent and self._bodies.logs()
        return call.kind is not Kind.UNKNOWN

    # --- one event ------------------------------------------------------------------------------

    def _compare(self, call: Call, line: int, seen: Seen) -> None:
        result = self.result
        if isinstance(seen, SpteChange | SetSpte):
            result.changes += 1
        if call in self._broken:
            if isinstance(seen, SpteChange):
                self._resync.impose(seen)
            return
        self._order.before(call, seen)
        shown = show(seen, self._names)
        try:
            traced = self._next(call, seen)
        except Stuck as stuck:
            self._diverge(call, line, shown, f"waits: {stuck}")
            return
        if traced is None:
            self._diverge(call, line, shown, "returns without another change")
            return
        agrees = self._compared.agree(seen, traced.what)
        if not isinstance(seen, SpteChange | SetSpte):
            agree, of = result.others.get(OTHERS[type(seen)], (0, 0))
            result.others[OTHERS[type(seen)]] = (agree + agrees, of + 1)
        if not agrees:
            self._diverge(call, line, shown, show_model(traced.what))
            if isinstance(seen, SpteChange):
                self._resync.impose(seen)
            return
        if isinstance(traced.what, Changed | Sets):
            result.agree += 1
            if not result.divergences:
                result.prefix += 1
        if isinstance(traced.what, Changed):
            self._untraced.traced(traced.what)
        self._running[call].answer(None)

    def _next(self, call: Call, seen: Seen) -> Traced | None:
        """The model's next tracepoint of a kind that the trace has."""
        again = False
        while True:
            running = self._running.get(call)
            if running is None:
                running = self._running[call] = self._driver.start(self._bodies.body(call))
            traced = self._driver.next_traced(running)
            if traced is not None and self._optional(traced.what):
                running.answer(None)
            elif traced is not None or call.kind is not Kind.RECOVER or again:
                return traced
            else:
                # The worker has begun another round.
                del self._running[call]
                again = True

    def _optional(self, what: What) -> bool:
        """Whether the trace has no events of this kind."""
        return not isinstance(what, Changed) and traced_as(what) not in self._has

    # --- reporting ------------------------------------------------------------------------------

    def _diverge(self, call: Call, line: int, kernel: str, model: str) -> None:
        self._broken.add(call)
        running = self._running.get(call)
        where: tuple[str, ...] = ()
        guards: tuple[str, ...] = ()
        if running is not None:
            where = running.place()
            guards = tuple(f"{op.describe()} -> {value(found)}" for op, found in running.trail)
            let_go_of_locks(self._bodies.kvm, running.step)
            self._driver.drop(running)
        if len(self.result.divergences) < MAX_DIVERGENCES:
            found = Divergence(line, call.describe(), kernel, model, where, guards)
            self.result.divergences.append(found)
        else:
            self.result.more_divergences += 1


def _in_order(calls: Iterable[Call]) -> list[tuple[int, int, Call, Seen | None]]:
    """The start of every call, its events, what it lists, and its end, in the trace's order."""
    points: list[tuple[int, int, Call, Seen | None]] = []
    calls = tuple(calls)
    unmaps = [call for call in calls if call.kind is Kind.UNMAP]
    for call in calls:
        first = call.record.line
        if call.published is not None:
            points.append((call.published, PUBLISH, call, None))
            first = min(first, call.published)
        points.append((first, START, call, None))
        if call.kind in AT_ONCE:
            points.append((call.record.line, GO, call, None))
        points += [(line, EVENT, call, seen) for line, seen in call.seen]
        points += [(line, LIST, call, None) for line in call.lists]
        points.append((_end(call, unmaps), END, call, None))
    points.sort(key=lambda point: point[:2])
    return points


def _end(call: Call, unmaps: list[Call]) -> int:
    """The line by which a call is over.

    An unmap that yields to another one of the same range may find nothing left to do after it.
    """
    if call.kind is not Kind.UNMAP:
        return call.last
    others = (
        other.last
        for other in unmaps
        if other.record.line < call.last and call.start < other.end and other.start < call.end
    )
    return max((call.last, *others))
