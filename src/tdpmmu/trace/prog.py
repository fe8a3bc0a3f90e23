"""The lab program's log: its steps, and the kernel's own statistics after each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdpmmu.trace.records import TraceError

_DONE = re.compile(r"\[\s*[\d.]+ ms\] DONE (.*)")
_STATS = re.compile(r"  stats vm: ?(.*)")
_STAT = re.compile(r"(\w+)=(\d+)")


@dataclass(frozen=True, slots=True)
class ProgStep:
    """A step that is done; ``stats`` are the VM's (``KVM_GET_STATS_FD``), zeros left out.

    None: the program printed no statistics.
    """

    line: int
    name: str
    stats: dict[str, int] | None


def read_prog(path: str) -> list[ProgStep]:
    """The steps of ``prog.txt`` in their order; TraceError if it is no such file."""
    steps: list[ProgStep] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if match := _DONE.match(line):
                    steps.append(ProgStep(number, match[1].strip(), None))
                elif (match := _STATS.match(line)) and steps and steps[-1].stats is None:
                    stats = {name: int(value) for name, value in _STAT.findall(match[1])}
                    steps[-1] = ProgStep(steps[-1].line, steps[-1].name, stats)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; expected the program's log") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: not text; expected the program's log") from None
    if not any(step.stats is not None for step in steps):
        raise TraceError(
            f'{path}: line 1: no step with statistics; expected "[ 1.0 ms] DONE w" followed by '
            '"  stats vm: pages_4k=1 ..."'
        )
    return steps
