"""Locks as the kernel's lock tracepoints print them (``trace/events/lock.h``)."""

from __future__ import annotations

LOCK_NAMES = {
    "mmu_lock": "&(kvm)->mmu_lock",
    "tdp_mmu_pages_lock": "&kvm->arch.tdp_mmu_pages_lock",
    "mmu_unsync_pages_lock": "&kvm->arch.mmu_unsync_pages_lock",
    "slots_lock": "&kvm->slots_lock",
    "mn_invalidate_lock": "&kvm->mn_invalidate_lock",
    "rcu": "rcu_read_lock",
    "srcu": "&kvm->srcu",
}
"""What lockdep calls the locks of the model."""

_ADDRESS = 0xFFFFC90000408000
_SLEEPING = ("slots_lock",)


class LockLines:
    """``lock_acquire`` when a thread asks, ``lock_acquired`` when it has the lock, and so on.

    RCU and SRCU, which nobody waits for, have ``lock_acquire`` and ``lock_release`` only.
    """

    def __init__(self) -> None:
        self._waiting: set[tuple[int, str]] = set()
        self._depth: dict[int, int] = {}
        self._addresses: dict[str, int] = {}

    def preempt_depth(self, thread: int) -> int:
        """How many locks a thread holds that keep it on its CPU."""
        return self._depth.get(thread, 0)

    def waits(self, thread: int, lock: str, mode: str) -> list[str]:
        """It has to wait."""
        self._waiting.add((thread, lock))
        return [self._acquire(lock, mode), f"lock_contended: {self._name(lock)}"]

    def taken(self, thread: int, lock: str, mode: str) -> list[str]:
        """It has the lock now."""
        if mode in ("rcu", "srcu"):
            return [self._acquire(lock, mode)]
        self._count(thread, lock, 1)
        lines = [f"lock_acquired: {self._name(lock)}"]
        if (thread, lock) in self._waiting:
            self._waiting.remove((thread, lock))
            return lines
        return [self._acquire(lock, mode), *lines]

    def released(self, thread: int, lock: str, mode: str) -> list[str]:
        """It gives the lock back."""
        if mode not in ("rcu", "srcu"):
            self._count(thread, lock, -1)
        return [f"lock_release: {self._name(lock)}"]

    def _acquire(self, lock: str, mode: str) -> str:
        shared = "read " if mode in ("read", "rcu", "srcu") else ""
        return f"lock_acquire: {self._name(lock, shared)}"

    def _name(self, lock: str, shared: str = "") -> str:
        address = self._addresses.setdefault(lock, _ADDRESS + 0x40 * len(self._addresses))
        return f"{address:016x} {shared}{LOCK_NAMES.get(lock, lock)}"

    def _count(self, thread: int, lock: str, by: int) -> None:
        if lock not in _SLEEPING:
            self._depth[thread] = self._depth.get(thread, 0) + by
