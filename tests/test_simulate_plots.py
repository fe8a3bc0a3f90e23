"""What the pictures of a simulation are drawn from."""

from __future__ import annotations

import pytest

from tdpmmu.simulation.plots import tail
from tdpmmu.worlds.simulate.histogram import Histogram


def test_the_tail_falls_where_the_values_are() -> None:
    histogram = Histogram.empty()
    histogram.add(3_000, 97)
    histogram.add(40_000, 3)
    at, beyond = tail(histogram)
    longer = dict(zip(at.tolist(), beyond.tolist(), strict=True))
    assert at.tolist() == sorted(at)
    assert max(at) == 40
    # Between the two only the three are left.
    last = max(time for time in at if time < 40)
    assert last == pytest.approx(3, rel=0.01)
    assert longer[last] == pytest.approx(0.03)
    assert beyond[0] == 1
    assert beyond[-1] == pytest.approx(0.005)
