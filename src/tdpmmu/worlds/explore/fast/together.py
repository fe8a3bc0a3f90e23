"""Compiled code in several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread


def together(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all of them, the first one in this thread."""
    others = [Thread(target=task, daemon=True) for task in tasks[1:]]
    for other in others:
        other.start()
    for task in tasks[:1]:
        task()
    for other in others:
        other.join()
