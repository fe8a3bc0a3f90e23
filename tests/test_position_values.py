"""Values in the keys of positions: which differ, and which are the same."""

from __future__ import annotations

import enum
import gc
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
from position_things import (
    PAGES,
    Ask,
    Box,
    Color,
    Crate,
    Leaf,
    Page,
    Pair,
    Record,
    Record2,
    hold,
    key_of,
)

from tdpmmu.machine.state import Layout


def local_function() -> Callable[[], int]:
    return lambda: 1


def capturing(value: Any) -> Callable[[], Any]:
    return lambda: value


def with_default(value: Any) -> Callable[[], Any]:
    return lambda x=value: x


def unset_box() -> Box:
    return Box.__new__(Box)


DISTINCT: list[Any] = [
    *(None, False, True, 0, 1, 0.0, -0.0, 1.0, 2, "", "1", "a", b"", b"a", ..., NotImplemented),
    *((), (1,), (True,), (1.0,), ((1,),), Pair(1, 2), (1, 2), Pair(1, True), Pair(1, 1)),
    *(Color.RED, Color.GREEN, Record(1), Record(True), Record(1, 1), Record((1,), None)),
    *([], [1], [True], [[]], {}, {1: 2}, {1: 2, 2: 1}, {2: 1, 1: 2}, {True: 2}),
    *(set(), {1}, {True}, frozenset(), frozenset({1}), frozenset({1.0})),
    *(range(3), range(0, 4, 2), range(0, 3, 2), slice(1), slice(True)),
    *(PAGES, PAGES[0], PAGES[1], PAGES[2], PAGES[0].plain, PAGES[2].plain, Page.plain),
    *(Leaf(1), PAGES[0].other, Record2(1), Record2(1, 1), Crate(1), Crate(None)),
    *(Page, Box, int, bool, enum, inspect, len, max, list.append, [].append, [1].append),
    *(Box(1), Box(True), Box(None), unset_box(), key_of, local_function(), local_function),
    *(capturing(1), capturing(True), capturing([]), with_default(1), with_default(True)),
    *(iter(()), iter((1,)), iter([1]), iter(range(2)), iter("ab"), iter(b"ab"), iter("\u1234")),
    *(enumerate((1,)), enumerate((1,), 1), enumerate([1]), zip((1,)), zip((1,), strict=True)),
    *(reversed((1, 2)), reversed([1, 2]), zip((1,), (2,), strict=False), iter(range(1 << 70))),
]


def test_values_of_different_types_or_contents_differ() -> None:
    keys: dict[Any, Any] = {}
    for value in DISTINCT:
        key = key_of(hold(value))
        assert key not in keys, (value, keys[key])
        keys[key] = value


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: 1 << 70, lambda: "".join(["a", "b"]), lambda: (1, [2]), lambda: Record([1], {})),
        *(lambda: [1, [2]], lambda: {1: {2}}, lambda: Box([1]), lambda: Pair(1, Box(2))),
        *(local_function, lambda: capturing((1, 2)), lambda: with_default(3), unset_box),
        *(lambda: PAGES[0].plain, lambda: iter((1, 2)), lambda: zip([1], "ab", strict=False)),
        *(lambda: {8, 0}, lambda: frozenset({"a"}), lambda: float("nan"), lambda: [].append),
    ],
)
def test_equal_values_made_twice_are_equal(make: Callable[[], Any]) -> None:
    assert key_of(hold(make())) == key_of(hold(make()))


def test_an_enum_member_is_no_int_and_two_enums_are_two() -> None:
    class Other(enum.IntEnum):
        RED = 1

    keys = {key_of(hold(value)) for value in (1, Color.RED, Other.RED, Color(1))}
    assert len(keys) == 3


def test_a_set_is_in_the_order_in_which_it_iterates() -> None:
    one, two = [{0, 8}, {8, 0}]
    if list(one) != list(two):
        assert key_of(hold(one)) != key_of(hold(two))
    big = set(range(100))
    big -= set(range(1, 100))
    assert key_of(hold(big)) != key_of(hold({0}))


def test_constants_of_a_machine() -> None:
    layout = Layout()
    one, two = layout.cell("one", 0), layout.cell("two", 0)
    assert key_of(hold(one)) != key_of(hold(two))
    assert key_of(hold(one)) == key_of(hold(one))


def test_the_layout_that_the_garbage_collector_reports() -> None:
    """What frames.py builds on; a new Python that changes it must fail here first."""

    async def run(a: str, b: str, c: str) -> Any:
        late = None
        del late, b
        return ("x", [c for _ in (1,)], await Ask())

    coro = run("a", "b", "c")
    coro.send(None)
    names = gc.get_referents(coro)
    code = names.index(coro.cr_code, 1)
    assert isinstance(names[code - 1], types.FunctionType)
    tail = names[code + 1 :]
    assert tail[0] == "a"
    assert tail[1] == "c" or tail[1].cell_contents == "c"
    assert tail[2:4] == ["x", ["c"]]
    assert tail[4] is coro.cr_await
    assert tail[5:] in ([], [None])
    coro.close()
