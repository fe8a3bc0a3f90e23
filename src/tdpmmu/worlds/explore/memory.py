"""How much memory this process has taken."""

from __future__ import annotations

import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

LEAST_COMPILED = 256
"""MiB with which compiled code is of use: loading it, and its first tables, take some 200."""

LEAST_LOSSY = 512
"""The same beside a table of states that takes half of the budget."""

_STATUS = Path("/proc/self/status")


def most_resident() -> int:
    """The most bytes that were resident at once.

    Linux's ``ru_maxrss`` has what the process that started this one had, too; ``VmHWM`` has not.
    """
    try:
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    most = getrusage(RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
