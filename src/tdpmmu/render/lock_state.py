"""Which locks a thread holds in a state."""

from __future__ import annotations

from tdpmmu.kernel.locks import RwLock
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Layout, State

SLEEPING = ("slots_lock", "srcu")
"""Locks under which the kernel may sleep."""


def held_by(layout: Layout, state: State, thread: int) -> list[tuple[str, str]]:
    """Name and mode (``write``, ``read``, ``spin``, ``rcu``, ``srcu``) of all that it is inside."""
    step = Step(state, thread)
    found = []
    for lock in layout.locks:
        if lock.held_write(step):
            found.append((lock.name, "write" if isinstance(lock, RwLock) else "spin"))
        elif isinstance(lock, RwLock) and lock.held_read(step):
            found.append((lock.name, "read"))
    for cell in layout.cells:
        if cell.name in ("rcu.nesting", "srcu.nesting") and step[cell][thread]:
            name = cell.name.removesuffix(".nesting")
            found.append((name, name))
    return found


def may_sleep(held: list[tuple[str, str]]) -> bool:
    """Whether nothing that is held forbids to sleep."""
    return all(name in SLEEPING for name, _ in held)


def tell(held: list[tuple[str, str]]) -> str:
    """``under mmu_lock (write), in an RCU read-side section``; nothing where nothing is held."""
    words = [
        f"in an {mode.upper()} read-side section" if mode in ("rcu", "srcu") else
        f"under {name}{'' if mode == 'spin' else f' ({mode})'}"
        for name, mode in held
    ]  # fmt: skip
    return ", ".join(words)
