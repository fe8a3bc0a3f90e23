"""Programs of this machine for the guest, with the libraries that they are linked to."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tdpmmu.lab.errors import need


def libraries(path: Path) -> dict[str, bytes]:
    """The shared libraries of a program or library, and its loader, by their paths."""
    listed = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    found = re.findall(r"(/\S+) \(0x", listed.stdout)
    return {one.lstrip("/"): Path(one).read_bytes() for one in found}


def trace_cmd() -> dict[str, bytes]:
    """``trace-cmd`` for the guest; LabError if it is not installed."""
    path = Path(need("trace-cmd", "trace-cmd"))
    return {"bin/trace-cmd": path.read_bytes(), **libraries(path)}
