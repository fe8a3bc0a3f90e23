"""The text of tracefs's file ``trace``: columns, flags and header as the kernel prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_LEGEND = """\
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
_MOST = 15
"""Characters that the kernel keeps of a task's name."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task, and the CPU it runs on all the time."""

    name: str
    pid: int
    cpu: int


class FtraceText:
    """Collects the lines of a trace in the order of time."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, task: Task, microseconds: int, text: str, preempt_depth: int = 0) -> None:
        """One entry: an event with its fields, or a line of the function tracer."""
        seconds, rest = divmod(microseconds, 1_000_000)
        depth = str(min(preempt_depth, 9)) if preempt_depth else "."
        self._lines.append(
            f"{task.name[:_MOST]:>16}-{task.pid:<7} [{task.cpu:03}] ...{depth}. "
            f"{seconds:5}.{rest:06}: {_one_line(text)}"
        )

    def __len__(self) -> int:
        return len(self._lines)

    def text(self, cpus: int, comments: Iterable[str]) -> str:
        """The whole file; ``comments`` are lines for its top."""
        lines = len(self._lines)
        head = [
            "# tracer: function",
            "#",
            *(f"# {_one_line(one)}".rstrip() for one in comments),
            "#",
        ]
        head += [f"# entries-in-buffer/entries-written: {lines}/{lines}   #P:{cpus}", "#"]
        return "\n".join(head) + "\n" + _LEGEND + "".join(f"{line}\n" for line in self._lines)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
