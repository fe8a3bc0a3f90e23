"""Operations of threads that live in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.machine.op import Op

FOREVER = 1 << 62
"""A time, in nanoseconds, that never comes."""

KICKED = "kicked"
"""Why a guest is left that an IPI, or another interrupt, has reached."""

HALTED = "halted"
"""Why a guest is not entered that has nothing to do any more."""


@dataclass(frozen=True, slots=True)
class SleepUntil(Op):
    """Sleep until that time, in nanoseconds; a time that has passed costs nothing."""

    at: int

    def describe(self) -> str:
        return f"sleep until {self.at} ns"


@dataclass(frozen=True, slots=True)
class AskAll(Op):
    """A flush is requested of all these vCPUs: those that need an IPI; None: one by one, please."""

    vcpus: tuple[VcpuCells, ...]


@dataclass(frozen=True, slots=True)
class SendAll(Op):
    """An IPI to each of these vCPUs: those from the first one on that still has to take it."""

    vcpus: tuple[VcpuCells, ...]


@dataclass(frozen=True, slots=True)
class StopRun(Op):
    """What is asked of the run is known: nothing happens after this moment."""

    def describe(self) -> str:
        return "the end of the run"


@dataclass(frozen=True, slots=True)
class Now(Op):
    """The thread's own time, in nanoseconds."""

    def describe(self) -> str:
        return "now"


class GuestCpu(Protocol):
    """What runs between VM entry and VM exit.

    ``left`` is, outside of the guest, how long it will run until its next touch.
    """

    left: int

    def enter(self, now: int) -> int:
        """The guest runs on; the time at which it has to be looked at again."""

    def reach(self, now: int) -> int | str:
        """That time has come: another time, or why the guest is left."""

    def kick(self, now: int) -> str:
        """An IPI makes it leave now."""

    def interrupted(self, now: int, ns: int) -> None:
        """It was made to leave by something else, that takes so long."""


@dataclass(frozen=True, slots=True)
class RunGuest(Op):
    """The guest runs until it has to leave; the result says why it does."""

    guest: GuestCpu

    def describe(self) -> str:
        return "the guest runs"


@dataclass(frozen=True, slots=True)
class NeedResched(Op):
    """``need_resched()``."""

    def describe(self) -> str:
        return "need_resched()"


@dataclass(frozen=True, slots=True)
class Spend(Op):
    """Work that no operation stands for."""

    ns: int

    def describe(self) -> str:
        return f"{self.ns} ns of work"
