"""Which objects are the same is part of a position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from position_things import (
    Ask,
    Box,
    hold,
    hold_two,
    key_of,
)


@pytest.mark.parametrize("make", [lambda: [1], lambda: {1: 1}, lambda: {1}, lambda: Box(1)])
def test_one_shared_object_is_not_two_equal_ones(make: Callable[[], Any]) -> None:
    shared = make()
    together, apart = key_of(hold_two(shared, shared)), key_of(hold_two(make(), make()))
    assert together != apart
    assert together == key_of(hold_two(*[make()] * 2))


def test_sharing_shows_through_containers() -> None:
    a: list[int] = []
    b: list[int] = []
    patterns = [(a, b, a), (a, b, b), (a, a, b), (a, a, a), (a, b, [])]
    assert len({key_of(hold(pattern)) for pattern in patterns}) == len(patterns)
    assert len({key_of(hold(Box(pattern))) for pattern in patterns}) == len(patterns)


def test_sharing_shows_between_frames() -> None:
    async def outer(own: Any, passed: Any) -> Any:
        await hold(passed)
        return own

    shared = [1]
    assert key_of(outer(shared, shared)) != key_of(outer(shared, [1]))


def test_sharing_shows_between_an_iterator_and_its_list() -> None:
    items = [1, 2]
    assert key_of(hold_two(items, iter(items))) != key_of(hold_two(items, iter([1, 2])))
    pair = iter(items)
    assert key_of(hold(zip(pair, pair, strict=False))) != key_of(
        hold(zip(iter(items), iter(items), strict=False))
    )


def test_an_object_may_contain_itself() -> None:
    def knot() -> list[Any]:
        items: list[Any] = [1]
        items.append(items)
        return items

    assert key_of(hold(knot())) == key_of(hold(knot()))
    assert key_of(hold(knot())) != key_of(hold([1, [1]]))


def test_dead_objects_are_not_numbered() -> None:
    async def run(dead: Any, one: Any) -> Any:
        await Ask()
        return one

    shared: list[int] = []
    assert key_of(run(shared, shared)) == key_of(run([], []))


def test_two_cells_are_not_one() -> None:
    def both(value: Any) -> Any:
        def get() -> Any:
            return value

        return get, lambda: value

    one, other = both(1), both(1)
    assert key_of(hold(one)) == key_of(hold(other))
    assert key_of(hold(one)) != key_of(hold((one[0], other[1])))
