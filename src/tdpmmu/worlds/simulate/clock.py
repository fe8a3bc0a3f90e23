"""Virtual time: the thread with the smallest time does its next operation, which costs some.

A heap of threads, and no event loop of others': an operation is one turn of one loop, in which
nothing has to be allocated but the entry in the heap, and often not even that.  Equal times go by
thread number, so a run depends on nothing but its inputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from tdpmmu.arch.hardware import OUTSIDE
from tdpmmu.arch.requests import FlushOwnTlb, SendIpi, SetMode, WaitIpi
from tdpmmu.arch.table import (
    ClearSpteBits,
    CmpXchgSpte,
    ReadSpte,
    Spte,
    WriteSpte,
    XchgSpte,
)
from tdpmmu.events.records import Event
from tdpmmu.kernel.locks import NeedBreak, Sleep
from tdpmmu.machine.op import Choose, Emit, Op, Read
from tdpmmu.machine.state import Cell
from tdpmmu.worlds.live import Memory
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.cpus import Cpus
from tdpmmu.worlds.simulate.grace import GracePeriods
from tdpmmu.worlds.simulate.herding import Herding
from tdpmmu.worlds.simulate.ledger import FLUSH, Ledger
from tdpmmu.worlds.simulate.locks import Locks
from tdpmmu.worlds.simulate.ops import (
    FOREVER,
    HALTED,
    KICKED,
    GuestCpu,
    Now,
    RunGuest,
    SleepUntil,
    Spend,
    StopRun,
)
from tdpmmu.worlds.simulate.pricing import PriceList
from tdpmmu.worlds.simulate.scan import Scan
from tdpmmu.worlds.simulate.thread import Hear, SimThread

Handler = Callable[[SimThread, Op], bool]
"""Does an operation, or makes the thread wait: true if it may go on."""

OTHER = "other"


class Deadlock(RuntimeError):
    """Threads wait, and nobody is left who could end that."""


class Clock:
    """The threads of one VM, and what they wait for."""

    def __init__(
        self,
        memory: Memory,
        costs: Costs,
        ledger: Ledger,
        *,
        preemption: bool,
        hear: Hear,
        host_cpus: int = 0,
        free_events: frozenset[type[Event]] = frozenset(),
    ) -> None:
        """``preemption``: CONFIG_PREEMPTION, without which nobody breaks a lock for others, and
        threads leave a CPU to others only where they ask whether they should.  ``host_cpus``: 0
        for one for each thread.

        ``free_events`` stand for no work on this kernel.
        """
        self.costs = costs
        self.ledger = ledger
        self.threads: list[SimThread] = []
        self.handlers: dict[type[Op], Handler] = {}
        self.on_flush: Callable[[SimThread], None] = lambda thread: None
        self.price = PriceList(costs, free_events)
        self.turns = 0
        self.until = 0
        self.stopped = False
        self._memory = memory
        self._hear = hear
        self._preemption = preemption
        self._heap: list[tuple[int, int, int, SimThread | Herding | Callable[[int], None]]] = []
        self._last: SimThread | None = None
        self.herding: Herding | None = None
        self._polled: list[SimThread] = []
        # Only a vCPU's own thread takes its IPI: who waits for that, by its number.
        self._for_ipis: dict[int, list[SimThread]] = {}
        self._standing = 0
        self._serial = 0
        self._never_waits: set[type[Op]] = set()
        self.cpus = Cpus(self, costs, ledger, host_cpus, preemption)
        self.locks = Locks(self, costs, ledger)
        GracePeriods(self, costs, ledger)
        self.handlers[Read] = self._reader(self.price.of(Read))
        self.handlers[ReadSpte] = self._spte_reader(self.price.of(ReadSpte))
        for kind in (XchgSpte, CmpXchgSpte, ClearSpteBits):
            self.handlers[kind] = self._spte_atomic
        self.handlers[Emit] = self._emit
        self.handlers[NeedBreak] = self._needbreak
        self.handlers[Sleep] = self._sleep
        self.handlers[SleepUntil] = self._sleep_until
        self.handlers[Now] = self._now
        self.handlers[Spend] = self._spend
        self.handlers[StopRun] = self._stop_run
        self.handlers[RunGuest] = self._run_guest
        self.handlers[SendIpi] = self._send_ipi
        self.handlers[SetMode] = self._set_mode
        self.handlers[FlushOwnTlb] = self._flush_own
        self.handlers[Choose] = self._choose

    def thread(self, kind: str) -> SimThread:
        """A new thread, without anything to do yet."""
        thread = SimThread(len(self.threads), kind, self._memory, self._hear)
        self.threads.append(thread)
        self.cpus.make_room(thread)
        return thread

    def start(self, thread: SimThread, body: Coroutine[Op, Any, Any], at: int = 0) -> None:
        """Let it run from ``at`` on."""
        thread.now = at
        thread.start(body)
        self.push(thread)

    # --- the loop -------------------------------------------------------------------------------

    def run(self, until: int) -> None:
        """Go on until every thread's time is past ``until``, in nanoseconds."""
        heap = self._heap
        self.until = until
        while heap and heap[0][0] <= self.until:
            now, _, ticket, who = heapq.heappop(heap)
            if isinstance(who, SimThread):
                if ticket == who.ticket:
                    who.now = now
                    self.turn_of(who)
                    self._drive(who)
            elif isinstance(who, Herding):
                if ticket == who.ticket and (left := who.turn()) is not None:
                    self._drive(left)
            else:
                self.turns += 1
                self.ledger.sample(now)
                who(now)
        if not heap:
            waiting = [thread for thread in self.threads if thread.op is not None]
            if waiting:
                said = "; ".join(f"{t.kind} {t.number} at {t.op!r}" for t in waiting)
                raise Deadlock(f"everybody waits: {said}")
        self.ledger.sample(self.until)

    def turn_of(self, thread: SimThread) -> None:
        """Somebody else's turn, unless it has only been interrupted by guests that hit."""
        if thread is not self._last:
            self.turns += 1
            self._last = thread

    def _drive(self, thread: SimThread) -> None:
        """Operations of one thread, as long as it is the one with the smallest time."""
        heap, handlers, ledger = self._heap, self.handlers, self.ledger
        while (op := thread.op) is not None:
            now = thread.now
            if now > self.until or (heap and (now, thread.number) > heap[0][:2]):
                self.push(thread)
                return
            if now >= ledger.next_sample:
                ledger.sample(now)
            if thread.cpu < 0 and not self.cpus.get(thread):
                return
            if self.cpus.limit and self.cpus.preempted(thread):
                return
            handler = handlers.get(op.__class__)
            going = self.plain(thread, op) if handler is None else handler(thread, op)
            if self._polled:
                self._poll(self._polled, now)
            if thread.number in self._for_ipis:
                self._poll(self._for_ipis[thread.number], now)
            if not going:
                if thread.cpu >= 0 and not thread.guest:
                    self.cpus.stands_still(thread)
                return
        self.cpus.release(thread, thread.now)

    def push(self, thread: SimThread) -> None:
        """Its next turn is at its own time."""
        self._serial += 1
        thread.ticket = self._serial
        thread.spinning = False
        heapq.heappush(self._heap, (thread.now, thread.number, self._serial, thread))

    def queue_herd(self, herding: Herding, first: tuple[int, int]) -> None:
        """The guests that run have their next turn then."""
        self._serial += 1
        herding.ticket = self._serial
        heapq.heappush(self._heap, (*first, self._serial, herding))

    def at(self, when: int, do: Callable[[int], None]) -> None:
        """Something that happens by itself, before what threads do at that time."""
        self._serial += 1
        heapq.heappush(self._heap, (when, -1, self._serial, do))

    def quiet_until(self, when: int) -> bool:
        """Whether nothing happens before ``when`` but what the running thread does itself.

        That takes in the end of the run and the next sample.
        """
        if when > self.until or when > self.ledger.next_sample:
            return False
        return self.next_turn()[0] >= when

    def next_turn(self) -> tuple[int, int]:
        """When it is somebody else's turn, and the number of the thread, or -1 if it is none."""
        heap = self._heap
        while heap:
            when, number, ticket, who = heap[0]
            if not isinstance(who, (SimThread, Herding)) or ticket == who.ticket:
                return when, number
            heapq.heappop(heap)
        return FOREVER, 0

    def next_but_guests(self) -> int:
        """When anything but the herd and the running thread has a turn."""
        return min(
            (
                at
                for at, _, ticket, who in self._heap
                if not isinstance(who, Herding)
                and (not isinstance(who, SimThread) or ticket == who.ticket)
            ),
            default=FOREVER,
        )

    def only_guests_until(self, when: int) -> bool:
        """Whether none but the herd and the running thread has a turn before ``when``."""
        for at, _, ticket, who in self._heap:
            stale = isinstance(who, SimThread) and ticket != who.ticket
            if at < when and not stale and not isinstance(who, Herding):
                return False
        return when <= self.until

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a cell to change."""
        return self._standing > 0

    def bring_forward(self, thread: SimThread, when: int) -> None:
        """A guest that runs has to be looked at earlier than it had said."""
        if not thread.guest:
            return
        if self.herding is not None:
            self.herding.interrupt(thread)
        elif when < thread.now:
            thread.now = when
            self.push(thread)

    def spte_price(self, op: Spte, scan: Scan) -> int:
        """Of an access to an entry, for who has come to it like this; writes come after reads."""
        ahead = scan.at(op.sptep) and op.__class__ is not WriteSpte
        return self.price(op) - (self.costs.saved_ahead if ahead else 0)

    def complete(self, thread: SimThread, result: Any, price: int) -> None:
        """The thread's operation is done."""
        thread.now += price
        thread.send(result)

    # --- operations -----------------------------------------------------------------------------

    def plain(self, thread: SimThread, op: Op) -> bool:
        """Any operation that has no handler of its own."""
        kind = op.__class__
        if kind not in self._never_waits and op.alternatives(thread.step) == 0:
            thread.waits_since = thread.now
            self._waiters(op).append(thread)
            self._standing += 1
            return False
        if kind.alternatives is Op.alternatives:
            self._never_waits.add(kind)
        self.complete(thread, op.apply(thread.step, 0), self.price(op))
        return True

    def _reader(self, price: int) -> Handler:
        """Reads are most of all operations: without the detour over ``apply``."""
        memory = self._memory

        def read(thread: SimThread, op: Op) -> bool:
            cell: Cell = op.cell  # type: ignore[attr-defined]
            thread.now += price
            thread.send(memory[cell.chunk][cell.offset])
            return True

        return read

    def _spte_reader(self, price: int) -> Handler:
        """The same of entries, which may have been fetched ahead."""
        memory, ahead = self._memory, price - self.costs.saved_ahead

        def read(thread: SimThread, op: Op) -> bool:
            cell: Cell = op.sptep  # type: ignore[attr-defined]
            thread.now += ahead if thread.scan.at(cell) else price
            thread.send(memory[cell.chunk][cell.offset])
            return True

        return read

    def _spte_atomic(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Spte)
        price = self.spte_price(op, thread.scan)
        self.complete(thread, op.apply(thread.step, 0), price)
        return True

    def _emit(self, thread: SimThread, op: Op) -> bool:
        event: Event = op.event  # type: ignore[attr-defined]
        self._hear(thread, event)
        thread.now += self.price.of_event(event.__class__)
        thread.send(None)
        return True

    def _waiters(self, op: Op) -> list[SimThread]:
        """Those who wait for the same as ``op``."""
        if not isinstance(op, WaitIpi):
            return self._polled
        assert op.vcpu.thread is not None
        return self._for_ipis.setdefault(op.vcpu.thread, [])

    def _poll(self, waiters: list[SimThread], now: int) -> None:
        """Threads that wait for some cell to change, after somebody has done something."""
        for thread in tuple(waiters):
            op = thread.op
            assert op is not None
            if op.alternatives(thread.step):
                waiters.remove(thread)
                self._standing -= 1
                ns = max(now, thread.waits_since) - thread.waits_since
                cause = FLUSH if isinstance(op, WaitIpi) else OTHER
                if cause == FLUSH:
                    thread.flushing += ns
                self.ledger.waited(thread.kind, cause, ns)
                thread.now = thread.waits_since + ns
                self.complete(thread, op.apply(thread.step, 0), self.price(op))
                self.push(thread)

    def _needbreak(self, thread: SimThread, op: Op) -> bool:
        """``need_resched() || rwlock_needbreak()``."""
        assert isinstance(op, NeedBreak)
        contended = self._preemption and self.locks.contended(op.lock.name)
        due = contended or self.cpus.need_resched(thread)
        self.complete(thread, due, self.price(op))
        return True

    def _sleep(self, thread: SimThread, op: Op) -> bool:
        """A place where the kernel may schedule: between unlock and lock it relaxes otherwise."""
        assert isinstance(op, Sleep)
        op.apply(thread.step, 0)
        if self.cpus.need_resched(thread):
            self.complete(thread, None, 0)
            self.cpus.give_way(thread, thread.now)
            return False
        price = self.costs.relax if op.where.startswith("cond_resched") else 0
        self.complete(thread, None, price)
        return True

    def _choose(self, thread: SimThread, op: Op) -> bool:
        """Allocations without sleeping succeed."""
        assert isinstance(op, Choose)
        self.complete(thread, op.options[0], 0)
        return True

    def _sleep_until(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SleepUntil)
        if op.at > thread.now:
            self.cpus.release(thread, thread.now)
            thread.now = op.at
            self.complete(thread, None, self.costs.wakeup)
        else:
            self.complete(thread, None, 0)
        return True

    def _now(self, thread: SimThread, op: Op) -> bool:
        self.complete(thread, thread.now, 0)
        return True

    def _stop_run(self, thread: SimThread, op: Op) -> bool:
        self.until, self.stopped = thread.now, True
        thread.op = SleepUntil(FOREVER)
        return True

    def _spend(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Spend)
        self.complete(thread, None, op.ns)
        return True

    # --- guests and IPIs ------------------------------------------------------------------------

    def _run_guest(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, RunGuest)
        now = thread.now
        if 0 <= thread.kicked_at <= now or (not thread.guest and self.cpus.need_resched(thread)):
            why = op.guest.kick(now) if thread.guest else KICKED
            self.leave_guest(thread, op.guest, why)
            return True
        if thread.guest:
            reached = op.guest.reach(now)
        else:
            if op.guest.left >= FOREVER:
                self.complete(thread, HALTED, 0)
                return True
            thread.guest = True
            if self.herding is not None:
                self.herding.joins(thread, op.guest)
                return False
            reached = op.guest.enter(now)
        # The heap need not be asked as long as nobody else is due.
        while (
            not isinstance(reached, str) and thread.kicked_at < 0 and self.quiet_until(reached + 1)
        ):
            thread.now = reached
            reached = op.guest.reach(reached)
        if isinstance(reached, str):
            self.leave_guest(thread, op.guest, reached)
            return True
        self.run_guest_until(thread, reached)
        return False

    def leave_guest(self, thread: SimThread, guest: GuestCpu, why: str) -> None:
        """It is left now, perhaps for something that takes the CPU for a while."""
        price = 0
        if why == KICKED:
            price, thread.stolen, thread.kicked_at = thread.stolen, 0, -1
            if price:
                guest.interrupted(thread.now, price)
        thread.guest = False
        self.complete(thread, why, price)

    def run_guest_until(self, thread: SimThread, when: int) -> None:
        """The guest is looked at again then, or when an IPI arrives."""
        if 0 <= thread.kicked_at < when:
            when = thread.kicked_at
        thread.now = when
        self.push(thread)

    def _send_ipi(self, thread: SimThread, op: Op) -> bool:
        """It arrives ``ipi_deliver`` later at a CPU that runs a guest."""
        assert isinstance(op, SendIpi)
        self.send_to(thread, op, thread.now)
        self.complete(thread, None, self.price(op))
        return True

    def send_to(self, thread: SimThread, op: SendIpi, now: int) -> None:
        """The IPI is on its way."""
        op.apply(thread.step, 0)
        number = op.vcpu.thread
        assert number is not None
        target = self.threads[number]
        if thread.step[op.vcpu.ipi] and target.kicked_at < 0:
            target.kicked_at = now + self.costs.ipi_deliver
            self.bring_forward(target, target.kicked_at)

    def _set_mode(self, thread: SimThread, op: Op) -> bool:
        """Outside the guest an IPI on its way is taken where nobody notices."""
        assert isinstance(op, SetMode)
        thread.entering = op.mode != OUTSIDE
        if op.mode == OUTSIDE:
            thread.kicked_at = -1
        op.apply(thread.step, 0)
        self.complete(thread, None, self.price(op))
        return True

    def _flush_own(self, thread: SimThread, op: Op) -> bool:
        op.apply(thread.step, 0)
        self.on_flush(thread)
        self.complete(thread, None, self.price(op))
        return True
