"""Counts of nanoseconds in buckets that are exact to 1 %."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BITS = 8
"""Values below 2**8 have a bucket each, others are cut to that many significant bits."""


def bucket_of(value: int) -> int:
    """The lower edge of the bucket of ``value``."""
    shift = max(0, value.bit_length() - _BITS)
    return value >> shift << shift


@dataclass(slots=True)
class Histogram:
    """``counts`` by lower edge; ``largest`` and ``total`` are exact."""

    counts: dict[int, int]
    largest: int = 0
    total: int = 0

    @classmethod
    def empty(cls) -> Histogram:
        """Nothing counted yet."""
        return cls({})

    def add(self, value: int, times: int = 1) -> None:
        """Count ``value``, in nanoseconds."""
        edge = bucket_of(value)
        self.counts[edge] = self.counts.get(edge, 0) + times
        self.largest = max(self.largest, value)
        self.total += value * times

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int:
        """The lower edge below or at which ``percent`` of the values lie; 0 without any."""
        wanted = self.count * percent / 100
        seen = 0
        for edge in sorted(self.counts):
            seen += self.counts[edge]
            if seen >= wanted:
                return edge
        return 0

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lower edges, ascending, and counts."""
        import numpy as np

        edges = sorted(self.counts)
        return (
            np.array(edges, dtype=np.int64),
            np.array([self.counts[edge] for edge in edges], dtype=np.int64),
        )
