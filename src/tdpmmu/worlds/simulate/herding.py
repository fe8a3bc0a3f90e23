"""Guests that run are in no queue of the clock: all of them are one entry, that of the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from tdpmmu.worlds.simulate.ops import FOREVER, GuestCpu
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock


NEVER = FOREVER, 0
"""Nobody's turn."""


class Herd(Protocol):
    """Guests that are looked at together."""

    first: tuple[int, int]
    """When the next one has to be looked at, and the number of its thread."""

    def interrupt(self, number: int, when: int) -> None:
        """An IPI will arrive then at the guest of that thread."""

    def go(self, limit: tuple[int, int], until: int) -> tuple[SimThread, int, Any] | None:
        """All before ``limit``; who leaves the guest earlier than that, when and why.

        Or whose IPIs have all been sent, when, and the result of that.
        """


class Herding:
    """The clock's entry for a herd."""

    def __init__(self, clock: Clock, herd: Herd) -> None:
        self.ticket = 0
        self._clock = clock
        self._herd = herd
        self._queued = NEVER
        self._guests: dict[int, GuestCpu] = {}

    def joins(self, thread: SimThread, guest: GuestCpu) -> None:
        """A guest runs from now on."""
        self._guests[thread.number] = guest
        due = guest.enter(thread.now)
        if thread.kicked_at >= 0:
            self._herd.interrupt(thread.number, thread.kicked_at)
            due = min(due, thread.kicked_at)
        self.not_after((due, thread.number))

    def interrupt(self, thread: SimThread) -> None:
        """An IPI is on its way to a guest that runs."""
        self._herd.interrupt(thread.number, thread.kicked_at)
        self.not_after((thread.kicked_at, thread.number))

    def not_after(self, first: tuple[int, int]) -> None:
        """The herd's next turn is then, if it is not before."""
        if first < self._herd.first:
            self._herd.first = first
        if first < self._queued:
            self._queue(first)

    def _queue(self, first: tuple[int, int]) -> None:
        self._queued = first
        self._clock.queue_herd(self, first)

    def turn(self) -> SimThread | None:
        """The next of the guests has to be looked at; whose thread goes on with something else."""
        clock = self._clock
        out = self._herd.go(clock.next_turn(), clock.until)
        self._queued = NEVER
        if self._herd.first < NEVER:
            self._queue(self._herd.first)
        if out is None:
            return None
        thread, now, why = out
        thread.now = now
        if thread.number not in self._guests:
            clock.complete(thread, why, 0)
            return thread
        clock.leave_guest(thread, self._guests.pop(thread.number), why)
        return thread
