"""What a run has shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdpmmu.simulation.guest import Guest, Knobs
from tdpmmu.simulation.migration import Migrated
from tdpmmu.worlds.simulate.histogram import Histogram
from tdpmmu.worlds.simulate.ledger import Hold, Latency, Ledger

if TYPE_CHECKING:
    from tdpmmu.simulation.machine import Simulation

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Result:
    """Times in nanoseconds of virtual time, memory in bytes.

    ``fault_latency`` by tag of the touch, from the access to when it went through.  ``stall_ns``:
    how long vCPUs did not run their guest, by cause (``worlds.simulate.ledger``).  ``wait_ns``:
    what threads of a kind waited for.  ``lock_holds`` by lock, mode and kind of thread;
    ``lock_timeline``: the longest of them.  ``counts``: of every kind of event.  ``coverage`` has
    rows of time, bytes mapped by huge pages, and by 4K pages; ``table_bytes`` of time and bytes.
    ``migrated``: what a migration has come to.
    """

    kernel: str
    guest: Guest
    knobs: Knobs
    seed: int
    virtual_ns: int
    fault_latency: dict[int, Histogram]
    worst: tuple[Latency, ...]
    stall_ns: dict[str, int]
    wait_ns: dict[tuple[str, str], int]
    lock_holds: dict[tuple[str, str, str], Histogram]
    lock_timeline: tuple[Hold, ...]
    counts: dict[str, int]
    flushes: int
    coverage: Ints
    table_bytes: Ints
    migrated: Migrated | None
    wall_s: float = field(compare=False)

    @classmethod
    def of(cls, run: Simulation, ledger: Ledger, virtual_ns: int, wall_s: float) -> Result:
        """Of a run that is over."""
        samples = ledger.samples
        coverage = [(s.at, s.huge, s.small) for s in samples]
        tables = [(s.at, s.tables) for s in samples]
        return cls(
            kernel=run.kernel,
            guest=run.guest,
            knobs=run.knobs,
            seed=run.seed,
            virtual_ns=virtual_ns,
            fault_latency=dict(sorted(ledger.latencies.items())),
            worst=ledger.worst(),
            stall_ns=dict(sorted((k, v) for k, v in ledger.stalls.items() if v)),
            wait_ns=dict(sorted((k, v) for k, v in ledger.waits.items() if v)),
            lock_holds=dict(sorted(ledger.holds.items())),
            lock_timeline=ledger.longest(),
            counts=dict(sorted(ledger.counts.items())),
            flushes=ledger.counts["FlushCompleted"],
            coverage=np.array(coverage, dtype=np.int64).reshape(-1, 3),
            table_bytes=np.array(tables, dtype=np.int64).reshape(-1, 2),
            migrated=None if run.migration is None else Migrated.of(run.migration),
            wall_s=wall_s,
        )

    def same_as(self, other: Result) -> list[str]:
        """The names of the fields, but the time that it took, in which two runs differ."""
        return [name for name, mine in self._plain().items() if mine != other._plain()[name]]

    def _plain(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del values["wall_s"]
        values["coverage"] = self.coverage.tolist()
        values["table_bytes"] = self.table_bytes.tolist()
        return values
