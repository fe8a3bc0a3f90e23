"""A guest that does one thing for a while, then another: the workload of files."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.simulation.guest import EXEC, READ, WRITE, Guest, HostEvent, Touches
from tdpmmu.simulation.workloads.host import AnyHostWork, merged
from tdpmmu.simulation.workloads.patterns import REGION, Pages, strew

if TYPE_CHECKING:
    from tdpmmu.simulation.guest import Bytes, Ints

BATCH = 4096
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Phase:
    """How a guest behaves for ``duration_ns`` (0: for ever).

    Each vCPU visits ``visits_per_s`` pages a second, at random moments.  A visit is a write with
    probability ``writes``, an instruction fetch with probability ``executes``, a read otherwise.
    Fetches go to the code: ``executed`` is the part of the guest's 2M regions that hold some, and
    ``drift`` the part of those that is somewhere else an hour later (new programs, JIT).
    """

    duration_ns: int = 0
    pattern: str = "uniform"
    exponent: float = 1.0
    visits_per_s: float = 1000.0
    writes: float = 0.3
    executes: float = 0.1
    executed: float = 0.05
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class PhasedWorkload:
    """Phases one after the other, the same in all vCPUs, while the host does its own work."""

    guest: Guest
    phases: tuple[Phase, ...]
    host: tuple[AnyHostWork, ...] = ()

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        began, idle = 0, 0
        for phase in self.phases:
            idle = yield from self._phase(phase, began, idle, vcpu, rng)
            began += phase.duration_ns

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return merged(self.guest, self.host, rng)

    def _phase(
        self, phase: Phase, began: int, idle: int, vcpu: int, rng: np.random.Generator
    ) -> Generator[Touches, None, int]:
        """One phase; ``idle`` is how long before it the last touch was, and so is what it returns.

        Times between visits have no memory, so a phase may begin afresh.
        """
        data = Pages(phase.pattern, self.guest.pages, self.guest.vcpus, phase.exponent)
        ends = began + phase.duration_ns if phase.duration_ns else None
        now = began
        drawn = 0
        while True:
            think = np.ceil(rng.exponential(1e9 / phase.visits_per_s, BATCH)).astype(np.int64)
            at = now + np.cumsum(think)
            kept = BATCH if ends is None else int(np.searchsorted(at, ends))
            kind = rng.random(BATCH)
            access = _access(kind, phase)
            gfn = data.draw(rng, vcpu, drawn, BATCH)
            code = access == EXEC
            gfn[code] = self._code(phase, at[code], rng)
            if kept:
                now = int(at[kept - 1])
                think[0] += idle
                idle = 0
                yield Touches(think[:kept], gfn[:kept], access[:kept])
            if kept < BATCH:
                return idle + began + phase.duration_ns - now
            drawn += BATCH

    def _code(self, phase: Phase, at: Ints, rng: np.random.Generator) -> Ints:
        """Pages that are executed at these times: a window that moves over the strewn regions."""
        regions = self.guest.pages // REGION
        held = max(1, round(phase.executed * regions))
        moved = (at / HOUR_NS * phase.drift * held).astype(np.int64)
        places = strew((moved + rng.integers(0, held, len(at))) % regions, regions)
        return places * REGION + rng.integers(0, REGION, len(at))


def _access(kind: np.typing.NDArray[np.float64], phase: Phase) -> Bytes:
    access = np.full(len(kind), READ, dtype=np.uint8)
    access[kind < phase.writes + phase.executes] = WRITE
    access[kind < phase.executes] = EXEC
    return access
