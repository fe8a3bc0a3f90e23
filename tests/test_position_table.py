"""The table of the positions of a thread."""

from __future__ import annotations

import gc
import inspect
import warnings
from typing import Any

import pytest
from position_things import (
    Ask,
    Box,
    Color,
    Pair,
    one,
)

from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.table import Positions


async def thread() -> Any:
    total = 0
    while True:  # not "while await": its first test is other bytecode than the later ones
        if not await Ask("more"):
            break
        total = (total + await Ask("add")) % 3
    if total == 2:
        raise ValueError("two")
    await Ask(total)


def walk(table: Positions, *results: Any) -> int:
    pos = table.initial
    for result in results:
        pos = table.next(pos, result)
    return pos


def test_positions_are_merged_and_memoised() -> None:
    table = Positions(thread)
    assert table.op(table.initial) == Ask("more")
    once = walk(table, 1, 1)
    assert table.op(once) == Ask("more")
    assert once != table.initial
    assert walk(table, 1, 4) == once
    assert walk(table, 1, 0) == table.initial
    misses = table.misses
    assert walk(table, 1, 1) == once
    assert table.misses == misses
    assert len(table) == 3


def test_finished_positions_are_one_and_end_there() -> None:
    table = Positions(thread)
    done = walk(table, 0, 5)
    assert table.op(done) is None
    assert table.raised(done) is None
    assert table.line(done) == []
    assert walk(table, 1, 1, 0, 7) == done
    with pytest.raises(ValueError, match="no pending operation"):
        table.next(done, None)


def test_a_thread_that_never_asks_finishes_at_once() -> None:
    async def run() -> None: ...

    table = Positions(run)
    assert table.op(table.initial) is None


def test_an_exception_is_a_position() -> None:
    table = Positions(thread)
    pos = walk(table, 1, 2, 0)
    assert table.op(pos) is None
    failure = table.raised(pos)
    assert isinstance(failure, ValueError)
    assert failure.__traceback__ is None
    assert 'raise ValueError("two")' in table.traceback(pos)
    assert table.line(pos)[-1][0] == "thread"
    assert walk(table, 1, 5, 0) == pos
    assert table.traceback(table.initial) == ""


def test_exceptions_with_different_words_or_places_are_different() -> None:
    async def run() -> None:
        what = await Ask()
        if what == 1:
            raise ValueError("a")
        if what == 2:
            raise ValueError("b")
        if what == 3:
            raise KeyError("a")
        raise ValueError("a")

    table = Positions(run)
    assert len({walk(table, what) for what in (1, 2, 3, 4)}) == 4


def test_results_are_told_apart_by_type() -> None:
    async def run() -> None:
        got = await Ask()
        await Ask(repr(got))

    table = Positions(run)
    results = [1, True, 1.0, 0, -0.0, 0.0, False, (1,), (True,), Color.RED, "1", b"1", Pair(1, 1)]
    for result in results * 2:
        assert table.op(table.next(table.initial, result)) == Ask(repr(result))


@pytest.mark.parametrize("result", [[], ([],), Box(1), iter(()), object()])
def test_mutable_results_are_refused(result: Any) -> None:
    with pytest.raises(UnsupportedPosition, match="results must be immutable"):
        Positions(thread).next(0, result)


@pytest.mark.parametrize("limit", [0, 1, 4096])
def test_a_position_is_rebuilt_by_replay(limit: int) -> None:
    table = Positions(thread, live_limit=limit)
    plain = Positions(thread)
    for results in [(1, 1), (1, 2), (1, 1, 1, 1), (1, 1, 0), (1, 2, 0), (0, 3), (1, 1, 1, 0)]:
        ops = [table.op(walk(table, *results[:n])) for n in range(len(results) + 1)]
        assert ops == [plain.op(walk(plain, *results[:n])) for n in range(len(results) + 1)]
    assert table.replays > 0
    if limit == 0:
        assert table.replays == table.misses


def test_a_path_leads_to_its_position() -> None:
    table = Positions(thread)
    positions = [walk(table, *[1, 1] * n) for n in range(4)]
    for pos in positions:
        assert walk(Positions(thread), *table.path(pos)) == walk(table, *table.path(pos)) == pos
    assert table.path(table.initial) == []


def test_an_equal_position_reached_again_saves_a_replay() -> None:
    table = Positions(thread)
    walk(table, 1, 0)  # consumes the coroutine at the start, and comes back there with it
    walk(table, 0)
    assert table.replays == 0


def test_no_more_coroutines_are_kept_than_allowed() -> None:
    async def run() -> None:
        n = 0
        while True:
            n = await Ask(n)

    table = Positions(run, live_limit=8)
    closed: list[int] = []
    for n in range(50):
        table.next(table.initial, n)
        closed.append(len(table._coroutines))
    assert max(closed) == 8
    table.close()
    assert not len(table._coroutines)
    assert table.op(walk(table, 3, 4)) == Ask(4)


def test_where_it_stands() -> None:
    async def outer() -> None:
        await in_middle()

    async def in_middle() -> None:
        await Ask()
        await (
            one()
        )  # fmt: skip

    table = Positions(outer)
    lines = table.line(walk(table, None))
    assert [name.rpartition(".")[2] for name, _, _ in lines] == ["outer", "in_middle", "one"]
    assert [file for _, file, _ in lines] == [__file__, __file__, inspect.getfile(one)]
    assert lines[-1][2] == inspect.getsourcelines(one)[1] + 1
    coro = outer()
    coro.send(None)
    coro.send(None)
    assert lines[1][2] == coro.cr_await.cr_frame.f_lineno
    coro.close()


def test_a_thread_that_is_no_function_of_its_results_is_found_out() -> None:
    runs = []

    async def run(log: list[int]) -> None:
        log.append(1)
        count = len(log)
        await Ask()
        await Ask(count)

    table = Positions(lambda: run(runs))
    table.next(table.initial, 0)
    with pytest.raises(UnsupportedPosition, match=r":\d+: .*run is not reached again"):
        table.next(table.initial, 1)


def test_refusal_comes_out_of_next_each_time() -> None:
    async def run() -> Any:
        thing = object() if await Ask() else None
        await Ask()
        return thing

    table = Positions(run)
    for _ in range(2):
        with pytest.raises(UnsupportedPosition):
            table.next(table.initial, 1)
    assert table.op(table.next(table.initial, 0)) == Ask()


def test_a_refused_thread_is_closed_for_good() -> None:
    finished = []

    async def run() -> None:
        try:
            await Ask()
        finally:
            await Ask()
            finished.append(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnsupportedPosition):
            Positions(run)
        gc.collect()
    assert not finished


def test_a_keyboard_interrupt_is_nobodys_position() -> None:
    async def run() -> None:
        if await Ask():
            raise KeyboardInterrupt
        await Ask()

    table = Positions(run)
    with pytest.raises(KeyboardInterrupt):
        table.next(table.initial, 1)
    assert table.op(table.next(table.initial, 0)) == Ask()
