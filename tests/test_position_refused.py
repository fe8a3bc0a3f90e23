"""Where a position cannot be told from a key it is refused, with file, line and reason."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import refused_threads
from position_things import (
    Ask,
    hold,
    one,
)
from refused_threads import (
    REFUSED,
    Context,
    by_generator,
    here,
    keeps_coroutine,
    keeps_deque,
    over_map,
)

from tdpmmu.worlds.explore.position.frames import position_key
from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.table import Positions


@pytest.mark.parametrize(
    ("function", "start", "words"), REFUSED, ids=[f"{f.__name__}-{w}" for f, _, w in REFUSED]
)
def test_refused_with_file_line_and_reason(
    function: Callable[..., Any], start: Callable[[], Any], words: str
) -> None:
    with pytest.raises(UnsupportedPosition) as caught:
        Positions(start)
    text = str(caught.value)
    assert text.startswith(f"{refused_threads.__file__}:{here(function)}: {function.__name__}")
    assert words in text
    assert "\n" not in text


def test_a_coroutine_kept_in_a_local_is_refused() -> None:
    coro = keeps_coroutine()
    with pytest.raises(UnsupportedPosition, match="awaits inside 'try'"):
        position_key(coro, coro.send(None))
    coro.close()

    async def run() -> None:
        later = hold(1)
        await Ask()
        await later

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ``later`` is never awaited
        with pytest.raises(UnsupportedPosition, match="a suspended coroutine"):
            Positions(run)
        gc.collect()


def test_the_message_names_the_local_and_what_to_write() -> None:
    with pytest.raises(UnsupportedPosition, match=r"the local 'thing' holds .* frozen dataclass"):
        Positions(keeps_deque)
    with pytest.raises(UnsupportedPosition, match=r"loop holds a builtins.map"):
        Positions(over_map)


def test_blocks_without_an_await_are_fine() -> None:
    async def run() -> int:
        try:
            x = 1
        except ValueError:
            x = 2
        else:
            await Ask()
        finally:
            x = 3
        with Context():
            x += 1
        y = [x for _ in (1, 2)]
        await Ask()
        return x + len(y)

    # The else body is covered by the finally.
    with pytest.raises(UnsupportedPosition, match="awaits inside"):
        Positions(run)

    async def again() -> int:
        try:
            x = 1
        except ValueError:
            x = 2
        else:
            await Ask()
        with Context():
            x += 1
        y = [x for _ in (1, 2)]
        await Ask()
        return x + len(y)

    table = Positions(again)
    assert table.op(table.next(table.next(table.initial, None), None)) is None


@pytest.mark.parametrize("thing", [None, 1, by_generator])
def test_only_coroutines_can_be_threads(thing: Any) -> None:
    with pytest.raises(UnsupportedPosition, match="not a coroutine"):
        Positions(lambda: thing() if callable(thing) else thing)


def test_a_coroutine_that_is_not_suspended_has_no_position() -> None:
    coro = one()
    with pytest.raises(UnsupportedPosition, match="not suspended"):
        position_key(coro, Ask())
    coro.close()
    with pytest.raises(UnsupportedPosition, match="not suspended"):
        position_key(coro, Ask())


def test_something_else_than_an_operation_is_yielded() -> None:
    coro = one()
    coro.send(None)
    with pytest.raises(UnsupportedPosition, match="a int, which is no operation"):
        position_key(coro, 5)
    coro.close()
