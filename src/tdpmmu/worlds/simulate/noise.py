"""What else a host's CPUs do: the timer's tick, and now and then something longer.

Interruptions come to each CPU at random (a Poisson process), and how long they take follows a power
law between the shortest and the longest ones that were measured, steep enough that the longest one
within a second is ``noise_usual`` on the median.  Each CPU has random numbers of its own, so what
happens to it depends on the seed alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.cpus import HostCpu

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock

SECOND = 1_000_000_000

STREAM = 1 << 32
"""Random numbers of CPUs are none of those of vCPUs."""


class Noise:
    """Interrupts of each CPU that somebody runs on."""

    def __init__(self, clock: Clock, costs: Costs, seed: int, *, tick_hz: int, rare: bool) -> None:
        """``tick_hz``: 0 for no ticks.  ``rare``: whether there are longer interruptions."""
        self._clock = clock
        self._costs = costs
        usual = 1 - 0.5 ** (1 / costs.noise_per_s)
        self._exponent = math.log(usual) / math.log(costs.noise_shortest / costs.noise_usual)
        self._beyond = (costs.noise_shortest / costs.noise_longest) ** self._exponent
        for cpu in clock.cpus.cpus:
            rng = np.random.default_rng([seed, STREAM + cpu.number])
            if tick_hz:
                period = SECOND // tick_hz
                self._tick(cpu, int(rng.integers(period)), period)
            if rare:
                self._rare(cpu, 0, rng)

    def _tick(self, cpu: HostCpu, at: int, period: int) -> None:
        def tick(now: int) -> None:
            self._clock.cpus.steal(cpu, now, self._costs.tick)
            self._tick(cpu, now + period, period)

        self._clock.at(at, tick)

    def _rare(self, cpu: HostCpu, now: int, rng: np.random.Generator) -> None:
        def interruption(now: int) -> None:
            self._clock.cpus.steal(cpu, now, self.draw(rng))
            self._rare(cpu, now, rng)

        self._clock.at(
            now + 1 + int(rng.exponential(SECOND / self._costs.noise_per_s)), interruption
        )

    def draw(self, rng: np.random.Generator) -> int:
        """How long one interruption takes."""
        survival = 1 - rng.random() * (1 - self._beyond)
        return int(self._costs.noise_shortest * survival ** (-1 / self._exponent))
