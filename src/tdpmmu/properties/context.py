"""Lock order and context: what lockdep and might_sleep would say."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import (
    BadUnlock,
    Event,
    LockNotHeld,
    LockTaken,
    MightSleep,
    OutOfBounds,
    UnguardedAccess,
    Warned,
)
from tdpmmu.machine.ghost import DISCIPLINE, HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class LockContext(Property):
    """``mmu_lock`` before ``tdp_mmu_pages_lock``; no sleep under a spinning lock or in RCU."""

    name: ClassVar[str] = "lock-context"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "locks in the wrong order, or a sleep where none is allowed"
    hears: ClassVar[tuple[type[Event], ...]] = (LockTaken, BadUnlock, LockNotHeld, MightSleep)

    def observe(self, step: Step, event: Event) -> None:
        mmu_lock = self.locks["mmu_lock"]
        pages_lock = self.locks["tdp_mmu_pages_lock"]
        if isinstance(event, LockTaken):
            if event.lock == "mmu_lock" and pages_lock.held_write(step):
                step.violate(self, "mmu_lock is taken inside tdp_mmu_pages_lock")
        elif isinstance(event, BadUnlock):
            step.violate(self, f"{event.lock} is released ({event.mode}) by who does not hold it")
        elif isinstance(event, LockNotHeld):
            step.violate(self, f"lockdep: {event.lock} should be held for {event.mode} here")
        elif isinstance(event, MightSleep):
            held = []
            if mmu_lock.held_write(step) or mmu_lock.held_read(step):
                held.append("under mmu_lock")
            if pages_lock.held_write(step):
                held.append("under tdp_mmu_pages_lock")
            if self.locks["rcu"].reading(step):
                held.append("in an RCU read-side section")
            if held:
                step.violate(self, f"{event.where} may sleep {' and '.join(held)}")


class Guarded(Property):
    """Lists and SPTEs are touched only under the lock that guards them."""

    name: ClassVar[str] = "guard"
    kind: ClassVar[str] = DISCIPLINE
    meaning: ClassVar[str] = "data is touched without the lock that guards it"
    hears: ClassVar[tuple[type[Event], ...]] = (UnguardedAccess,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, UnguardedAccess):
            how = "written" if event.write else "read"
            step.violate(self, f"{event.cell} is {how} without {event.guard}")


class ArrayBounds(Property):
    """No array of a memslot (``lpage_info``, ``rmap``) is touched outside of its bounds."""

    name: ClassVar[str] = "out-of-bounds"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "an array of a memslot is read or written beyond its ends"
    hears: ClassVar[tuple[type[Event], ...]] = (OutOfBounds,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, OutOfBounds):
            step.violate(
                self, f"{event.array} has {event.length} entries, and [{event.index}] is touched"
            )


class KernelWarning(Property):
    """No ``WARN_ON`` or ``BUG`` of the kernel fires."""

    name: ClassVar[str] = "kernel-warning"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a WARN_ON or BUG fires"
    hears: ClassVar[tuple[type[Event], ...]] = (Warned,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, Warned):
            step.violate(self, f"WARN: {event.what}")
