"""What a frame holds is part of a position: instructions, live locals, operands, captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from position_things import (
    PAGES,
    Ask,
    Melting,
    Page,
    hold,
    key_of,
)

from tdpmmu.machine.op import Read, Write
from tdpmmu.machine.state import Layout
from tdpmmu.worlds.explore.position.frames import position_key


async def unbound(flag: Any) -> Any:
    if flag:
        x = None
    await Ask()
    return x


def test_an_unbound_local_is_not_none() -> None:
    assert key_of(unbound(0)) != key_of(unbound(1))


async def unbind() -> Any:
    x = 1
    await Ask(x)
    if await Ask():
        del x
    await Ask()
    return x


def test_a_local_that_goes_away_is_noticed_in_a_frame_seen_before() -> None:
    coro = unbind()
    position_key(coro, coro.send(None))
    position_key(coro, coro.send(None))
    gone = position_key(coro, coro.send(1))
    assert gone == key_of(unbind(), None, 1)
    assert gone != key_of(unbind(), None, 0)


async def at_lines() -> None:
    await Ask()
    await Ask()


def test_two_awaits_of_the_same_operation_differ() -> None:
    assert key_of(at_lines()) != key_of(at_lines(), None)


async def over_tuple() -> None:
    for _ in (7, 7, 7):
        await Ask()


async def over_range() -> None:
    for _ in range(3):
        await Ask()


async def over_list() -> None:
    for _ in [7, 7, 7]:
        await Ask()


async def over_enumerate() -> None:
    for _, _ in enumerate((7, 7, 7)):
        await Ask()


async def over_zip() -> None:
    for _, _ in zip((7, 7, 7), [7, 7, 7], strict=True):
        await Ask()


async def over_reversed() -> None:
    for _ in reversed((7, 7, 7)):
        await Ask()


async def over_str() -> None:
    for _ in "aaa":
        await Ask()


@pytest.mark.parametrize(
    "loop",
    [over_tuple, over_range, over_list, over_enumerate, over_zip, over_reversed, over_str],
)
def test_a_loop_knows_how_far_it_is(loop: Callable[[], Any]) -> None:
    keys = [key_of(loop(), *[None] * step) for step in range(3)]
    assert len(set(keys)) == 3
    assert keys == [key_of(loop(), *[None] * step) for step in range(3)]


async def accumulate() -> Any:
    flush = bool(await Ask(0))
    flush |= await Ask(1)
    return flush


def test_an_operand_below_the_await_counts() -> None:
    assert key_of(accumulate(), 0) != key_of(accumulate(), 1)
    assert key_of(accumulate(), 1) == key_of(accumulate(), 2)


async def operands(one: Any, two: Any) -> Any:
    pair = (one, two, await Ask())
    return pair


def test_operands_keep_their_types_and_sharing() -> None:
    shared: list[int] = []
    keys = [
        key_of(operands(*both))
        for both in [(1, 1), (1, True), (True, 1), (shared, shared), (shared, [])]
    ]
    assert len(set(keys)) == len(keys)


async def dead(value: Any) -> int:
    await Ask()
    value = 1
    return value


def test_a_dead_local_does_not_count_whatever_it_is() -> None:
    assert len({key_of(dead(value)) for value in (1, 2, object(), Melting())}) == 1


async def maybe_recovered(flag: Any) -> None:
    if flag:
        try:
            raise ValueError
        except ValueError:
            flag = 0
    await Ask()


def test_an_exception_handled_before_leaves_no_trace() -> None:
    assert key_of(maybe_recovered(0)) == key_of(maybe_recovered(1))


def test_the_pending_operation_counts() -> None:
    async def ask(what: Any) -> None:
        await Ask(what)

    async def either(flag: bool, cell: Any) -> None:
        await (Read(cell) if flag else Write(cell, 0))

    cell = Layout().cell("a", 0)
    assert len({key_of(ask(what)) for what in (0, 1, True, None, "")}) == 5
    assert key_of(either(True, cell)) != key_of(either(False, cell))


def test_equal_code_of_two_modules_is_two() -> None:
    source = "async def run(op):\n    await op\n    return WHAT"
    one: dict[str, Any] = {"WHAT": 1}
    two: dict[str, Any] = {"WHAT": 2}
    code = compile(source, "<one>", "exec")
    exec(code, one)
    exec(code, two)
    assert key_of(one["run"](Ask())) != key_of(two["run"](Ask()))
    exec(compile(source, "<two>", "exec"), three := {"WHAT": 1})
    assert three["run"].__code__ == one["run"].__code__
    assert key_of(one["run"](Ask())) != key_of(three["run"](Ask()))


def test_equal_functions_of_two_modules_are_two() -> None:
    source = "def make():\n    return lambda: WHAT"
    one: dict[str, Any] = {"WHAT": 1}
    two: dict[str, Any] = {"WHAT": 2}
    code = compile(source, "<one>", "exec")
    exec(code, one)
    exec(code, two)
    assert key_of(hold(one["make"]())) == key_of(hold(one["make"]()))
    assert key_of(hold(one["make"]())) != key_of(hold(two["make"]()))


class Root:
    async def run(self) -> Any:
        return 0


def test_super_and_the_object_it_needs() -> None:
    def mixin(base: type) -> type:
        class Mixin(base):  # type: ignore[misc]
            async def run(self) -> Any:
                await Ask()
                return await super().run()

        return Mixin

    class Start(Root):
        def __init__(self, number: int) -> None:
            self.number = number

        def position_key(self) -> int:
            return self.number

        run = Root.run

    once = mixin(Start)
    twice = mixin(once)
    assert key_of(once(1).run()) != key_of(once(2).run())
    assert key_of(once(1).run()) == key_of(once(1).run())
    # The same code twice in one chain: only __class__ tells which of the two is running.
    assert key_of(twice(1).run()) != key_of(once.run(twice(1)))


def test_captured_constants_are_part_of_the_key() -> None:
    def body(number: Any, page: Page) -> Any:
        async def helper() -> None:
            await Ask()

        async def run() -> Any:
            await helper()
            await Ask()
            return number, page

        return run()

    keys = {key_of(body(number, page)) for number in (1, True, 2) for page in PAGES}
    assert len(keys) == 9
    assert key_of(body(1, PAGES[0])) == key_of(body(1, PAGES[0]))


async def captures(level: Any) -> Any:
    await Ask()
    total = tuple(x for x in (1, 2, 3) if x != level)
    await Ask()
    return total


def test_a_local_that_a_finished_generator_expression_captured() -> None:
    assert key_of(captures(1)) != key_of(captures(True))
    assert key_of(captures(7), None) == key_of(captures(8), None)


async def keeps_lambda(n: Any) -> Any:
    f = lambda: n  # noqa: E731
    await Ask()
    n = 5
    return f()


def test_a_lambda_kept_over_an_await_is_its_code_and_captures() -> None:
    assert key_of(keeps_lambda(1)) != key_of(keeps_lambda(2))
    assert key_of(keeps_lambda(1)) == key_of(keeps_lambda(1))


async def one_of_two_lambdas(n: Any, f: Any = None) -> Any:
    own = lambda: n  # noqa: E731
    if f is None:
        return own
    if await Ask():
        f = own
    await Ask()
    n = 5
    return f()


def test_a_frames_own_cell_is_not_another_of_the_same_content() -> None:
    with pytest.raises(StopIteration) as done:
        one_of_two_lambdas(1).send(None)
    other = done.value.value
    assert key_of(one_of_two_lambdas(1, other), 0) != key_of(one_of_two_lambdas(1, other), 1)


def test_multiplied_awaits_on_one_line() -> None:
    async def run() -> Any:
        return (await Ask(), await Ask()) if await Ask() else await Ask()

    keys = [key_of(run()), key_of(run(), 0), key_of(run(), 1), key_of(run(), 1, 1)]
    assert len(set(keys)) == 4


def test_conditions_and_displays_may_await() -> None:
    async def run(x: Any) -> Any:
        if await Ask() and not await Ask():
            x[await Ask()] = [await Ask(), f"{await Ask()}{x}"]
        return {await Ask(): await Ask()}

    coro = run({})
    op = coro.send(None)
    for result in (1, 0, 1, 2, 3, 4):
        position_key(coro, op)
        op = coro.send(result)
    position_key(coro, op)
    coro.close()
