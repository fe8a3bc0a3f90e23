"""Locks in virtual time: who waits, for how long, and who is next.

``rwlock_t`` is a qrwlock: first come, first served.  A reader in process context waits behind a
queued writer, readers that are next to each other in the queue come in together.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tdpmmu.events.records import LockReleased, LockTaken
from tdpmmu.kernel.locks import NOBODY, Acquire, Release, RwLock, SpinAcquire, SpinLock, SpinRelease
from tdpmmu.machine.op import Op
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import LOCK, Ledger
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock


class Locks:
    """All locks of one VM."""

    def __init__(self, clock: Clock, costs: Costs, ledger: Ledger) -> None:
        self._clock = clock
        self._costs = costs
        self._ledger = ledger
        self._queues: dict[str, deque[tuple[SimThread, str]]] = {}
        self._line: dict[str, tuple[int, int]] = {}
        clock.handlers[Acquire] = self._acquire
        clock.handlers[Release] = self._release
        clock.handlers[SpinAcquire] = self._spin_acquire
        clock.handlers[SpinRelease] = self._spin_release

    def queue(self, name: str) -> deque[tuple[SimThread, str]]:
        """Who waits for a lock, in order."""
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = deque()
        return found

    def contended(self, name: str) -> bool:
        """``rwlock_is_contended``."""
        return bool(self._queues.get(name))

    def _fetch_line(self, thread: SimThread, name: str) -> int:
        """What the lock's cache line costs: it goes from CPU to CPU, to one after the other."""
        owner, free = self._line.get(name, (NOBODY, 0))
        if owner == thread.number:
            return 0
        free = max(free, thread.now) + self._costs.reader_bounce
        self._line[name] = thread.number, free
        return free - thread.now

    def line(self, name: str) -> tuple[int, int]:
        """At which thread's CPU a lock's line is, and when it has come there."""
        return self._line.get(name, (NOBODY, 0))

    def move_line(self, number: int, name: str, free: int) -> None:
        """The line has come to that thread's CPU."""
        self._line[name] = number, free

    # --- rwlock ---------------------------------------------------------------------------------

    def _free(self, lock: RwLock, mode: str, thread: SimThread) -> bool:
        step = thread.step
        if step[lock.writer] != NOBODY:
            return False
        return mode == "read" or not step[lock.readers]

    def _acquire(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Acquire)
        queue = self.queue(op.lock.name)
        if queue or not self._free(op.lock, op.mode, thread):
            thread.waits_since = thread.now
            queue.append((thread, op.mode))
            return False
        self._take(thread, op.lock, op.mode)
        return True

    def _take(self, thread: SimThread, lock: RwLock, mode: str) -> None:
        step = thread.step
        costs = self._costs
        if mode == "write":
            step[lock.writer] = thread.number
            price = costs.write_lock
        else:
            price = costs.read_lock
            step[lock.readers] |= 1 << thread.number
        price += self._fetch_line(thread, lock.name)
        thread.taken[lock.name] = thread.now
        step.emit(LockTaken(lock.name, mode))
        self._clock.complete(thread, True, price)

    def _release(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Release)
        lock, step = op.lock, thread.step
        step.emit(LockReleased(lock.name, op.mode))
        if op.mode == "write":
            step[lock.writer] = NOBODY
            price = self._costs.write_unlock
        else:
            step[lock.readers] &= ~(1 << thread.number)
            price = self._costs.read_unlock
        price += self._fetch_line(thread, lock.name)
        self._gives_back(thread, lock.name, op.mode)
        now = thread.now
        self._clock.complete(thread, None, price)
        self._hand_over(lock, now)
        return True

    def _gives_back(self, thread: SimThread, name: str, mode: str) -> None:
        since = thread.taken.pop(name, thread.now)
        ns = thread.now - since
        if thread.holds is not None:
            thread.holds.append((name, mode, since, ns))
        self._ledger.held(name, mode, thread.kind, thread.number, since, ns)

    def again(self, thread: SimThread, name: str, mode: str, released: int, taken: int) -> None:
        """The thread gives a lock back and takes it again, and nobody comes in between."""
        now, thread.now = thread.now, released
        self._gives_back(thread, name, mode)
        thread.taken[name], thread.now = taken, now

    def _hand_over(self, lock: RwLock, now: int) -> None:
        """To the next in the queue, and if that is a reader to those right behind it."""
        queue = self.queue(lock.name)
        while queue:
            thread, mode = queue[0]
            if not self._free(lock, mode, thread):
                return
            queue.popleft()
            now = max(now, thread.waits_since) + self._costs.lock_handover
            self._wake(thread, now)
            self._take(thread, lock, mode)
            self._clock.push(thread)

    def _wake(self, thread: SimThread, now: int) -> None:
        ns = now - thread.waits_since
        thread.now = now
        thread.locked += ns
        self._ledger.waited(thread.kind, LOCK, ns)

    # --- spinlocks and mutexes ------------------------------------------------------------------

    def _spin_acquire(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SpinAcquire)
        lock = op.lock
        if thread.step[lock.owner] != NOBODY:
            thread.waits_since = thread.now
            self.queue(lock.name).append((thread, "spin"))
            return False
        self._spin_take(thread, lock)
        return True

    def _spin_take(self, thread: SimThread, lock: SpinLock) -> None:
        thread.step[lock.owner] = thread.number
        thread.taken[lock.name] = thread.now
        thread.step.emit(LockTaken(lock.name, "spin"))
        self._clock.complete(thread, None, self._costs.spin_lock)

    def _spin_release(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SpinRelease)
        lock, now = op.lock, thread.now
        thread.step.emit(LockReleased(lock.name, "spin"))
        thread.step[lock.owner] = NOBODY
        self._gives_back(thread, lock.name, "spin")
        self._clock.complete(thread, None, self._costs.spin_unlock)
        queue = self.queue(lock.name)
        if queue:
            following, _ = queue.popleft()
            self._wake(following, now + self._costs.lock_handover)
            self._spin_take(following, lock)
            self._clock.push(following)
        return True
