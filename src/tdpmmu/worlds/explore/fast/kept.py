"""Where compiled code is kept from one process to the next, and whether any is; without numba."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HERE = Path(__file__).parent

SOURCES = (*sorted(HERE.glob("*.py")), HERE.parent / "turn.py", HERE.parent / "storage.py")
"""What is compiled, and what has constants that are compiled in."""


def _directory() -> str:
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(os.path.expanduser(home), "tdpmmu")
    return os.path.join(base, f"compiled-{digest.hexdigest()[:16]}")


DIRECTORY = _directory()

KEPT = os.path.isdir(DIRECTORY)
"""Whether there is something from an earlier process."""
