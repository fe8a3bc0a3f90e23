"""``rwlock_t`` with ``needbreak``, spinlocks, and which cells they guard.

A reader or writer that finds the lock taken blocks.  With ``queued`` set, it first joins the queue,
which is what makes ``rwlock_needbreak`` true for the owner, and readers wait behind a queued writer
(qrwlock).  Without, contention is left to the world: ``need_resched() || rwlock_needbreak()`` is a
free choice, which covers every queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdpmmu.events.records import BadUnlock, LockNotHeld, LockReleased, LockTaken, MightSleep
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Choose, Op, Step
from tdpmmu.machine.state import Cell, Guard, Layout

NOBODY = -1


class RwLock:
    """``rwlock_t``: one writer or any number of readers (threads, as a bit mask)."""

    __slots__ = ("layout", "name", "queued", "readers", "waiters", "writer")

    def __init__(self, layout: Layout, name: str, *, chunk: int, queued: bool = False) -> None:
        self.name = name
        self.queued = queued
        self.layout = layout
        layout.locks.append(self)
        self.writer = layout.cell(f"{name}.writer", NOBODY, chunk=chunk)
        self.readers = layout.cell(f"{name}.readers", 0, chunk=chunk)
        self.waiters = layout.cell(f"{name}.waiters", (), chunk=chunk)

    def position_key(self) -> str:
        return self.name

    async def read_lock(self) -> None:
        """``read_lock``."""
        while not await Acquire(self, "read"):
            pass

    async def write_lock(self) -> None:
        """``write_lock``."""
        while not await Acquire(self, "write"):
            pass

    async def read_unlock(self) -> None:
        """``read_unlock``."""
        await Release(self, "read")

    async def write_unlock(self) -> None:
        """``write_unlock``."""
        await Release(self, "write")

    async def needbreak(self) -> bool:
        """``need_resched() || rwlock_needbreak(lock)``."""
        if self.queued:
            contended: bool = await NeedBreak(self)
            return contended
        due: bool = await Choose(f"need_resched() or rwlock_needbreak({self.name})", (False, True))
        return due

    async def cond_resched_write(self) -> None:
        """``cond_resched_rwlock_write``, called when a break is known to be due."""
        await self.write_unlock()
        await Sleep("cond_resched_rwlock_write")
        await self.write_lock()

    async def cond_resched_read(self) -> None:
        """``cond_resched_rwlock_read``, called when a break is known to be due."""
        await self.read_unlock()
        await Sleep("cond_resched_rwlock_read")
        await self.read_lock()

    async def assert_held_write(self) -> None:
        """``lockdep_assert_held_write``."""
        await AssertHeld(self, "write")

    async def assert_held_read(self) -> None:
        """``lockdep_assert_held_read``."""
        await AssertHeld(self, "read")

    async def held_for_write(self) -> bool:
        """What the kernel passes on as ``shared``, the other way round."""
        held: bool = await HeldForWrite(self)
        return held

    def held_write(self, step: Step) -> bool:
        """Whether the running thread is the writer."""
        return bool(step[self.writer] == step.thread)

    def held_read(self, step: Step) -> bool:
        """Whether the running thread is among the readers."""
        return bool(step[self.readers] >> step.thread & 1)

    def held(self, step: Step) -> bool:
        """Whether the running thread holds it in any mode."""
        return self.held_write(step) or self.held_read(step)


@dataclass(frozen=True, slots=True)
class Acquire(Op):
    """Take ``lock``; false if the thread only joined the queue."""

    lock: RwLock
    mode: str

    @property
    def waits_in_line_for(self) -> str:
        return self.lock.name

    def _free(self, step: Step) -> bool:
        lock = self.lock
        if step[lock.writer] != NOBODY:
            return False
        if self.mode == "write":
            return bool(step[lock.readers] == 0)
        waiters = step[lock.waiters]
        mine = (step.thread, "read")
        ahead = waiters[: waiters.index(mine)] if mine in waiters else waiters
        return all(mode != "write" for _, mode in ahead)

    def alternatives(self, step: Step) -> int:
        if self._free(step):
            return 1
        queue = self.lock.queued and (step.thread, self.mode) not in step[self.lock.waiters]
        return 1 if queue else 0

    def apply(self, step: Step, alternative: int) -> bool:
        lock = self.lock
        me = (step.thread, self.mode)
        if not self._free(step):
            step[lock.waiters] = (*step[lock.waiters], me)
            return False
        if me in step[lock.waiters]:
            step[lock.waiters] = tuple(w for w in step[lock.waiters] if w != me)
        if self.mode == "write":
            step[lock.writer] = step.thread
        else:
            step[lock.readers] = step[lock.readers] | 1 << step.thread
        _nests(step, lock)
        step.emit(LockTaken(lock.name, self.mode))
        return True

    def mover(self, step: Step) -> str:
        # Two in a row may be one turn only where no other thread takes them the other way round.
        return NEITHER if self.lock.queued or not self.lock.layout.lock_order.trusted else RIGHT

    def describe(self) -> str:
        return f"{self.mode}_lock({self.lock.name})"


@dataclass(frozen=True, slots=True)
class Release(Op):
    """Give ``lock`` back."""

    lock: RwLock
    mode: str

    def apply(self, step: Step, alternative: int) -> None:
        lock = self.lock
        held = lock.held_write(step) if self.mode == "write" else lock.held_read(step)
        if not held:
            step.emit(BadUnlock(lock.name, self.mode))
            return
        step.emit(LockReleased(lock.name, self.mode))
        if self.mode == "write":
            step[lock.writer] = NOBODY
        else:
            step[lock.readers] = step[lock.readers] & ~(1 << step.thread)

    def mover(self, step: Step) -> str:
        return NEITHER if self.lock.queued else LEFT

    def describe(self) -> str:
        return f"{self.mode}_unlock({self.lock.name})"


@dataclass(frozen=True, slots=True)
class NeedBreak(Op):
    """``rwlock_needbreak``: somebody waits for the lock."""

    lock: RwLock

    def apply(self, step: Step, alternative: int) -> bool:
        return bool(step[self.lock.waiters])

    def describe(self) -> str:
        return f"rwlock_needbreak({self.lock.name})"


@dataclass(frozen=True, slots=True)
class AssertHeld(Op):
    """``lockdep_assert_held_read`` (any mode will do) and ``_write``."""

    lock: RwLock | SpinLock
    mode: str

    def apply(self, step: Step, alternative: int) -> None:
        lock = self.lock
        ok = lock.held_write(step)
        if self.mode == "read" and isinstance(lock, RwLock):
            ok = ok or lock.held_read(step)
        if not ok:
            step.emit(LockNotHeld(lock.name, self.mode))

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"lockdep_assert_held_{self.mode}({self.lock.name})"


@dataclass(frozen=True, slots=True)
class HeldForWrite(Op):
    """In which mode the running thread holds the lock."""

    lock: RwLock

    def apply(self, step: Step, alternative: int) -> bool:
        return self.lock.held_write(step)

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"{self.lock.name} is held for write?"


class SpinLock:
    """``spinlock_t``."""

    __slots__ = ("layout", "name", "owner")

    def __init__(self, layout: Layout, name: str, *, chunk: int) -> None:
        self.name = name
        self.layout = layout
        layout.locks.append(self)
        self.owner = layout.cell(f"{name}.owner", NOBODY, chunk=chunk)

    def position_key(self) -> str:
        return self.name

    async def lock(self) -> None:
        """``spin_lock``."""
        await SpinAcquire(self)

    async def unlock(self) -> None:
        """``spin_unlock``."""
        await SpinRelease(self)

    def held_write(self, step: Step) -> bool:
        """Whether the running thread owns it."""
        return bool(step[self.owner] == step.thread)


@dataclass(frozen=True, slots=True)
class SpinAcquire(Op):
    """Take a spinlock."""

    lock: SpinLock

    @property
    def waits_in_line_for(self) -> str:
        return self.lock.name

    def alternatives(self, step: Step) -> int:
        return 1 if step[self.lock.owner] == NOBODY else 0

    def apply(self, step: Step, alternative: int) -> None:
        step[self.lock.owner] = step.thread
        _nests(step, self.lock)
        step.emit(LockTaken(self.lock.name, "spin"))

    def mover(self, step: Step) -> str:
        return RIGHT if self.lock.layout.lock_order.trusted else NEITHER

    def describe(self) -> str:
        return f"spin_lock({self.lock.name})"


def _nests(step: Step, lock: RwLock | SpinLock) -> None:
    """Take note of the locks inside which ``lock`` was taken."""
    for other in lock.layout.locks:
        if other is lock:
            continue
        if other.held_write(step) or (isinstance(other, RwLock) and other.held_read(step)):
            step.nested.append((other.name, lock.name, lock.layout.lock_order))


@dataclass(frozen=True, slots=True)
class SpinRelease(Op):
    """Give a spinlock back."""

    lock: SpinLock

    def apply(self, step: Step, alternative: int) -> None:
        if not self.lock.held_write(step):
            step.emit(BadUnlock(self.lock.name, "spin"))
            return
        step.emit(LockReleased(self.lock.name, "spin"))
        step[self.lock.owner] = NOBODY

    def mover(self, step: Step) -> str:
        return LEFT

    def describe(self) -> str:
        return f"spin_unlock({self.lock.name})"


@dataclass(frozen=True, slots=True)
class Sleep(Op):
    """``might_sleep``: here the kernel may schedule, so no spinlock and no RCU section may be
    open.
    """

    where: str

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(MightSleep(self.where))

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return self.where


class UnderWriteLock(Guard):
    """Changed only under the write lock, read under either mode.

    With ``lockless_reads`` anybody may read it without the lock, so that changes are visible.
    """

    def __init__(self, lock: RwLock, *, lockless_reads: bool = False) -> None:
        super().__init__(f"{lock.name} for write")
        self.lock = lock
        self.lockless_reads = lockless_reads

    def nobody_writes(self, step: Step) -> bool:
        return self.lock.held_write(step) or self.lock.held_read(step)

    def nobody_looks(self, step: Step) -> bool:
        return not self.lockless_reads and self.lock.held_write(step)

    def allows(self, step: Step, write: bool) -> bool:
        if self.lock.held_write(step):
            return True
        return not write and (self.lockless_reads or self.lock.held_read(step))


class Visitors(Guard):
    """The assumption that only the threads of ``mask`` touch a cell under the read lock.

    A visitor without a living rival is as good as a writer.  ``alive`` is the mask of living
    threads.
    """

    def __init__(self, name: str, alive: Cell) -> None:
        super().__init__(f"who touches {name} under the read lock")
        self.alive = alive
        self.mask = -1

    def no_rivals(self, step: Step) -> bool:
        """Whether no other living thread is a visitor."""
        return self.trusted and not self.mask & step[self.alive] & ~(1 << step.thread)

    def visit(self, step: Step) -> None:
        """A thread comes in: if it was not expected, the assumption is broken."""
        if not self.mask >> step.thread & 1:
            step.broken.append(self)


class UnderEitherMode(Guard):
    """Changed under the write lock, or atomically under the read lock (TDP SPTEs).

    A fast page fault does it in an RCU section alone; from the first one on the lock shuts nobody
    out.
    """

    def __init__(
        self,
        lock: RwLock,
        visitors: Visitors,
        lockless: Callable[[Step], bool] = lambda step: False,
    ) -> None:
        super().__init__(lock.name)
        self.lock = lock
        self.visitors = visitors
        self.lockless = lockless

    def nobody_writes(self, step: Step) -> bool:
        return self.lock.held_write(step) or (
            self.lock.held_read(step) and self.visitors.no_rivals(step)
        )

    def nobody_looks(self, step: Step) -> bool:
        return self.nobody_writes(step)

    def allows(self, step: Step, write: bool) -> bool:
        if self.lock.held_write(step):
            return True
        if self.lock.held_read(step):
            self.visitors.visit(step)
            return True
        if self.lockless(step):
            step.broken.append(self)
            return True
        return False


class UnderSpinOrWrite(Guard):
    """Touched under the write lock, or under the read lock together with a spinlock.

    With ``lockless_reads`` it may be looked at without either, as long as any thread is ``alive``.
    """

    def __init__(
        self,
        lock: RwLock,
        spin: SpinLock,
        *,
        lockless_reads: bool = False,
        alive: Cell | None = None,
    ) -> None:
        super().__init__(f"{spin.name} or {lock.name} for write")
        self.lock = lock
        self.spin = spin
        self.lockless_reads = lockless_reads
        self.alive = alive

    def nobody_writes(self, step: Step) -> bool:
        return self.allows(step, True)

    def nobody_looks(self, step: Step) -> bool:
        if self.lockless_reads and (self.alive is None or step[self.alive]):
            return False
        return self.allows(step, True)

    def allows(self, step: Step, write: bool) -> bool:
        if self.lock.held_write(step) or (self.lockless_reads and not write):
            return True
        return self.spin.held_write(step) and self.lock.held_read(step)


class Unchanged(Guard):
    """The assumption that a cell never changes; the first write breaks it."""

    def nobody_writes(self, step: Step) -> bool:
        return True

    def allows(self, step: Step, write: bool) -> bool:
        if write:
            step.broken.append(self)
        return True


class UnderSpin(Guard):
    """Touched under a spinlock alone."""

    def __init__(self, spin: SpinLock) -> None:
        super().__init__(spin.name)
        self.spin = spin

    def nobody_writes(self, step: Step) -> bool:
        return self.spin.held_write(step)

    def nobody_looks(self, step: Step) -> bool:
        return self.spin.held_write(step)

    def allows(self, step: Step, write: bool) -> bool:
        return self.spin.held_write(step)
