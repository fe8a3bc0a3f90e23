"""RCU and SRCU in virtual time: grace periods last as long as the cost table says, or longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdpmmu.events.records import LockReleased, LockTaken
from tdpmmu.kernel.rcu import Barrier, Call, ReadLock, ReadUnlock, Snapshot, WaitGrace
from tdpmmu.machine.op import Op
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock

GRACE = "grace period"


class GracePeriods:
    """Readers by domain, callbacks that wait for time to pass, and threads that wait for readers.

    A callback runs ``grace_period`` after ``call_rcu``: readers are out by then, since nobody
    sleeps inside.  Who waits for SRCU waits for the readers of that moment, too.
    """

    def __init__(self, clock: Clock, costs: Costs, ledger: Ledger) -> None:
        self._clock = clock
        self._costs = costs
        self._ledger = ledger
        self._readers: dict[str, dict[int, int]] = {}
        self._callbacks: dict[str, int] = {}
        self._waiting: list[tuple[SimThread, str, set[int]]] = []
        self._tickets: dict[int, set[int]] = {}
        clock.handlers[ReadLock] = self._read_lock
        clock.handlers[ReadUnlock] = self._read_unlock
        clock.handlers[Call] = self._call
        clock.handlers[Snapshot] = self._snapshot
        clock.handlers[WaitGrace] = self._wait
        clock.handlers[Barrier] = self._barrier

    def _read_lock(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, ReadLock)
        name = op.rcu.name
        inside = self._readers.setdefault(name, {})
        inside[thread.number] = inside.get(thread.number, 0) + 1
        thread.step.emit(LockTaken(name, op.rcu.mode))
        price = self._costs.srcu if op.rcu.mode == "srcu" else self._costs.rcu
        self._clock.complete(thread, None, price)
        return True

    def _read_unlock(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, ReadUnlock)
        name = op.rcu.name
        inside = self._readers[name]
        left = inside[thread.number] - 1
        thread.step.emit(LockReleased(name, op.rcu.mode))
        if left:
            inside[thread.number] = left
        else:
            del inside[thread.number]
            self._reader_gone(name, thread)
        price = self._costs.srcu if op.rcu.mode == "srcu" else self._costs.rcu
        self._clock.complete(thread, None, price)
        return True

    def _reader_gone(self, name: str, reader: SimThread) -> None:
        for entry in tuple(self._waiting):
            thread, domain, readers = entry
            if domain == name:
                readers.discard(reader.number)
                if not readers:
                    self._waiting.remove(entry)
                    self._over(thread, max(thread.now, reader.now))

    # --- callbacks ------------------------------------------------------------------------------

    def _call(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Call)
        name, callback = op.rcu.name, op.callback
        callback.grace_period_starts(thread.step)
        self._callbacks[name] = self._callbacks.get(name, 0) + 1

        def over(now: int) -> None:
            callback.grace_period_over(thread.step)
            self._callbacks[name] -= 1
            if not self._callbacks[name]:
                self._barrier_over(name, now)

        self._clock.at(thread.now + self._costs.grace_period, over)
        self._clock.complete(thread, None, self._costs.list_change)
        return True

    def _barrier(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Barrier)
        if not self._callbacks.get(op.rcu.name):
            self._clock.complete(thread, None, 0)
            return True
        thread.waits_since = thread.now
        self._waiting.append((thread, f"barrier of {op.rcu.name}", {-1}))
        return False

    def _barrier_over(self, name: str, now: int) -> None:
        for entry in tuple(self._waiting):
            if entry[1] == f"barrier of {name}":
                self._waiting.remove(entry)
                self._over(entry[0], now)

    # --- synchronize ----------------------------------------------------------------------------

    def _snapshot(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Snapshot)
        self._tickets[thread.number] = set(self._readers.get(op.rcu.name, {}))
        price = self._costs.srcu_grace_period if op.rcu.mode == "srcu" else self._costs.grace_period
        self._ledger.waited(thread.kind, GRACE, price)
        self._clock.cpus.release(thread, thread.now)
        self._clock.complete(thread, thread.number, price)
        return True

    def _wait(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, WaitGrace)
        now_inside: dict[int, Any] = self._readers.get(op.rcu.name, {})
        readers = {reader for reader in self._tickets.pop(op.ticket) if reader in now_inside}
        if not readers:
            self._clock.complete(thread, None, 0)
            return True
        thread.waits_since = thread.now
        self._waiting.append((thread, op.rcu.name, readers))
        return False

    def _over(self, thread: SimThread, now: int) -> None:
        self._ledger.waited(thread.kind, GRACE, now - thread.waits_since)
        thread.now = now
        self._clock.complete(thread, None, 0)
        self._clock.push(thread)
