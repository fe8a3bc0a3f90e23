"""Which cycles cannot go on for ever, all at once and one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.worlds.explore.progress import components

pytest.importorskip("numba")

import numpy as np

from tdpmmu.worlds.explore.fast.fairness import perhaps_fair

THREADS, STATES = 3, 7

turns = st.tuples(
    st.integers(0, THREADS - 1), st.integers(0, STATES - 1), st.integers(0, STATES - 1)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(turns), st.lists(st.integers(0, 7), min_size=STATES, max_size=STATES))
def test_perhaps_fair(edges: list[tuple[int, int, int]], can_move: list[int]) -> None:
    """A part stays if each thread moves in it, or cannot move in one of its states."""
    of = components(STATES, [tail for _, tail, _ in edges], [head for _, _, head in edges])
    expected = []
    for edge in edges:
        part = [other for other in edges if of[other[1]] == of[other[2]] == of[edge[1]]]
        movers = {thread for thread, _, _ in part}
        others = set(range(THREADS)) - movers
        stays = any(all(can_move[tail] >> thread & 1 for _, tail, _ in part) for thread in others)
        if edge in part and not stays:
            expected.append(edge)
    rows = [[*edge, can_move[edge[1]], 0] for edge in edges]
    found = perhaps_fair(np.array(rows, np.int64).reshape(len(rows), 5))
    assert [tuple(row[:3]) for row in found.tolist()] == expected
