"""Live migration, as the source sees it: passes over dirty memory until little is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tdpmmu.simulation.guest import Migrate
from tdpmmu.worlds.simulate.ops import Now, SleepUntil, Spend, StopRun

PAGE = 4096
SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Pass:
    """``pages`` were sent from ``at_ns`` on, which took ``ns``."""

    at_ns: int
    pages: int
    ns: int


class Migration:
    """What has come of it: ``pending`` pages were left when it ended, one way or the other."""

    def __init__(self, plan: Migrate) -> None:
        self.plan = plan
        self.passes: list[Pass] = []
        self.pending = 0
        self.converged = False

    def send_ns(self, pages: int) -> int:
        """How long that takes."""
        return pages * PAGE * SECOND // self.plan.bandwidth

    async def run(self, mmu: Any, pages: int, taken: Callable[[], int], ioctl_ns: int) -> None:
        """First all ``pages`` are sent, then each time those of which the log says that they were
        written meanwhile, until what is left may be sent while the guest stands still.

        ``taken`` says how many bits of the log were ever cleared.
        """
        await Spend(ioctl_ns)
        await mmu.set_dirty_logging(0, 0, True, 0)
        if mmu.initially_set():
            # Userspace begins with all pages anyway; this is what arms them.
            await self._fetch(mmu, taken, ioctl_ns)
        self.pending = pages
        while not self.converged and len(self.passes) < self.plan.max_passes:
            at, ns = await Now(), self.send_ns(self.pending)
            await SleepUntil(at + ns)
            self.passes.append(Pass(at, self.pending, ns))
            self.pending = await self._fetch(mmu, taken, ioctl_ns)
            self.converged = self.pending * PAGE <= self.plan.stop_below
        if not self.converged:
            await mmu.set_dirty_logging(0, 0, False, 0)
        await StopRun()

    async def _fetch(self, mmu: Any, taken: Callable[[], int], ioctl_ns: int) -> int:
        before = taken()
        await Spend(ioctl_ns)
        await mmu.get_dirty_log(0, 0, 0)
        return taken() - before


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was sent at ``bandwidth`` (bytes a second), and whether it converged.

    ``pending`` pages were left: ``downtime_ns`` is how long it takes to send them.
    """

    bandwidth: int
    passes: tuple[Pass, ...]
    converged: bool
    pending: int
    downtime_ns: int

    @classmethod
    def of(cls, migration: Migration) -> Migrated:
        """Of one that is over."""
        left = migration.send_ns(migration.pending)
        passes = tuple(migration.passes)
        bandwidth = migration.plan.bandwidth
        return cls(bandwidth, passes, migration.converged, migration.pending, left)

    @property
    def total_ns(self) -> int:
        """From the first page sent to the last, or to when it was given up."""
        if not self.passes:
            return 0
        last = self.passes[-1]
        rest = self.downtime_ns if self.converged else 0
        return last.at_ns + last.ns + rest - self.passes[0].at_ns
