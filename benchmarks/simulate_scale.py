"""One hour of a large guest, recovery on: what the simulator takes for it.

    python benchmarks/simulate_scale.py [SECONDS [KERNEL [TIB [VCPUS]]]]

Half a percent of the guest's 2 MiB regions is executed.  Each vCPU touches a page every 5 ms on
average, three of ten in executed regions, the others anywhere.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from tdpmmu.simulation.guest import EXEC, WRITE, Guest, HostEvent, Knobs, Touches
from tdpmmu.simulation.machine import Simulation
from tdpmmu.worlds.simulate.costs import load_costs

THINK_NS, EXECUTED, FETCHES, BATCH = 5e6, 0.005, 0.3, 8192


class Spread:
    """Executed regions lie evenly between the others."""

    def __init__(self, pages: int) -> None:
        self.regions = pages // 512
        self.code = max(1, int(self.regions * EXECUTED))

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        stride = self.regions // self.code
        while True:
            fetch = rng.random(BATCH) < FETCHES
            code = rng.integers(0, self.code, BATCH) * stride
            region = np.where(fetch, code, rng.integers(0, self.regions, BATCH))
            yield Touches(
                rng.exponential(THINK_NS, BATCH).astype(np.int64),
                region * 512 + rng.integers(0, 512, BATCH),
                np.where(fetch, EXEC, WRITE).astype(np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0
    kernel = sys.argv[2] if len(sys.argv) > 2 else "6.12"
    tebibytes = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    guest = Guest(tebibytes << 40, int(sys.argv[4]) if len(sys.argv) > 4 else 64)
    run = Simulation(kernel, guest, Knobs(), load_costs(), Spread(guest.pages), 1)
    result = run.run(int(seconds * 1e9))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.0f} s of {kernel}, {tebibytes} TiB, {guest.vcpus} vCPUs:")
    print(f"{time.process_time():.1f} s of CPU time,")
    print(f"{result.wall_s:.1f} s, {memory:.0f} MiB; touches {result.counts['GuestAccess']},")
    print(
        f"faults {result.counts['FaultFixed']}, recovered {result.counts.get('NxPageRecovered', 0)}"
    )


if __name__ == "__main__":
    main()
