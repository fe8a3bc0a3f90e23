"""Which pages are touched, as batches of random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tdpmmu.simulation.guest import Ints

REGION = 512
"""4K pages of a 2M region."""

PATTERNS = ("uniform", "zipf", "sequential")


@dataclass(frozen=True, slots=True)
class Pages:
    """A pattern over ``pages`` pages that all vCPUs share.

    ``uniform``: each page as likely as any other.  ``zipf``: the page of rank k with a weight of
    1/k**``exponent``; neighbours in rank are neighbours in memory within 2M, and the 2M regions are
    strewn over all of it.  ``sequential``: each vCPU walks its own share, over and over.
    """

    pattern: str
    pages: int
    vcpus: int
    exponent: float = 1.0

    def draw(self, rng: np.random.Generator, vcpu: int, start: int, count: int) -> Ints:
        """The pages that a vCPU touches as its touches ``start`` to ``start + count``."""
        if self.pattern == "uniform":
            return rng.integers(0, self.pages, count)
        if self.pattern == "zipf":
            return self._strewn(zipf_ranks(rng.random(count), self.pages, self.exponent))
        share = max(1, self.pages // self.vcpus)
        walked: Ints = vcpu * share + (start + np.arange(count, dtype=np.int64)) % share
        return walked

    def _strewn(self, ranks: Ints) -> Ints:
        regions = max(1, self.pages // REGION)
        placed = strew(ranks // REGION, regions)
        inside: Ints = np.minimum(placed * REGION + ranks % REGION, self.pages - 1)
        return inside


def zipf_ranks(uniform: np.typing.NDArray[np.float64], count: int, exponent: float) -> Ints:
    """Ranks 0 to ``count`` - 1 by inversion of the continuous power law."""
    if exponent == 1.0:
        ranks = np.power(float(count + 1), uniform)
    else:
        power = 1.0 - exponent
        ranks = (1.0 - uniform * (1.0 - float(count + 1) ** power)) ** (1.0 / power)
    return np.clip(ranks.astype(np.int64) - 1, 0, count - 1)


def strew(index: Ints, count: int) -> Ints:
    """A fixed permutation of 0 to ``count`` - 1 that tears neighbours apart."""
    placed: Ints = (index * _step(count)) % count
    return placed


def _step(count: int) -> int:
    """About ``count`` divided by the golden ratio, with no common factor."""
    step = max(1, round(count * 0.6180339887498949))
    while np.gcd(step, count) != 1:
        step += 1
    return step
