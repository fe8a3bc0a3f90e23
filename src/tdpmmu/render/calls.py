"""Which of the kernel's functions a thread enters and leaves from one operation to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike

OUTERMOST = "thread"
"""Stands for the caller where no function of the kernel's is one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the kernel's names of the function and of its caller, and its arguments."""

    number: int
    name: str
    caller: str
    arguments: Mapping[str, Any]


class Calls:
    """Follows all threads of a run.

    A call is seen at its first operation and left at the first one of its thread after it; one
    without an operation is not seen.
    """

    def __init__(self, names: KernelNames) -> None:
        self._names = names
        self._open: dict[int, list[Call]] = {}

    def of(self, thread: int) -> list[Call]:
        """The open calls of a thread, outermost first."""
        return self._open.get(thread, [])

    def step(self, record: RecordLike) -> tuple[list[Call], list[Call]]:
        """The calls left since the thread's last operation, innermost first, and those entered."""
        before = self.of(record.thread)
        now: list[Call] = []
        for place in record.place:
            name = self._names.name(place)
            if name is not None:
                caller = now[-1].name if now else OUTERMOST
                now.append(Call(place.call, name, caller, dict(place.arguments)))
        same = 0
        while same < min(len(before), len(now)) and before[same].number == now[same].number:
            same += 1
        self._open[record.thread] = before[:same] + now[same:]
        return before[same:][::-1], now[same:]
