"""Keys of positions: what they tell apart, what they merge, what they refuse; and the table."""

from __future__ import annotations

import ast
import collections
import enum
import gc
import inspect
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

import tdpmmu
from tdpmmu.machine.op import Op, Read, Write
from tdpmmu.machine.state import Layout
from tdpmmu.worlds.explore.position import Positions, UnsupportedPosition, position_key


@dataclass(frozen=True, slots=True)
class Ask(Op):
    what: Any = 0


class Color(enum.IntEnum):
    RED = 1
    GREEN = 2


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass(frozen=True)
class Record:
    a: Any
    b: Any = None


@dataclass
class Melting:
    a: int = 0


@dataclass(frozen=True, eq=False)
class ByIdentity:
    a: int = 0


@dataclass(frozen=True)
class Record2(Record):
    """The same fields under another name."""


class Page:
    """A constant."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def position_key(self) -> Any:
        return self.number

    def __call__(self, *args: Any) -> None:
        return None

    def plain(self) -> int:
        return 1

    def other(self) -> int:
        return 2


class Leaf(Page):
    """Another kind of constant, which may have equal keys."""


class Box:
    """A helper object."""

    position_fields: ClassVar[tuple[str, ...]] = ("value", "next")
    __slots__ = ("__dict__", "next", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


class Crate(Box):
    """A box of another type."""


def key_of(coro: Any, *results: Any) -> Any:
    """The key after these results."""
    op = coro.send(None)
    for result in results:
        op = coro.send(result)
    key = position_key(coro, op)
    hash(key)
    coro.close()
    return key


async def hold(value: Any) -> Any:
    await Ask()
    return value


async def hold_two(one: Any, two: Any) -> Any:
    await Ask()
    return one, two


# -- values ----------------------------------------------------------------------------------

PAGES = (Page(1), Page(True), Page(2))


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
    """What position.py builds on; a new Python that changes it must fail here first."""

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


# -- which objects are the same --------------------------------------------------------------


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


# -- frames ----------------------------------------------------------------------------------


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


# -- what is refused -------------------------------------------------------------------------


async def in_call() -> None:
    len(
        await Ask(),  # HERE
    )


async def in_method_call(items: Any = ()) -> None:
    items.count(await Ask())  # HERE


async def in_own_method_call(page: Page = PAGES[0]) -> None:
    page.plain(await Ask())  # type: ignore[call-arg]  # HERE


async def in_constructor() -> None:
    Record(await Ask())  # HERE


async def in_keyword_call() -> None:
    dict(a=await Ask())  # noqa: C408  # HERE


async def in_star_call() -> None:
    print(*(), await Ask())  # HERE


async def in_call_of_an_object(page: Page = PAGES[0]) -> None:
    page(await Ask())  # HERE


async def in_try() -> None:
    try:
        await Ask()  # HERE
    except ValueError:
        return


async def in_except() -> None:
    try:
        raise ValueError
    except ValueError:
        await Ask()  # HERE


async def in_finally() -> None:
    try:
        pass
    finally:
        await Ask()  # HERE


async def in_finally_after_return(n: int = 0) -> int:
    try:
        n += 1
        return n
    finally:
        await Ask()  # HERE


async def in_loop_in_try() -> None:
    try:
        for _ in (1, 2):
            await Ask()  # HERE
    finally:
        pass


class Context:
    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...

    async def __aenter__(self) -> None:
        await Ask()

    async def __aexit__(self, *args: Any) -> None: ...

    def position_key(self) -> int:
        return 1


async def in_with() -> None:
    with Context():
        await Ask()  # HERE


async def enter_async_with() -> None:
    async with Context():  # HERE
        pass


async def in_async_with() -> None:
    async with NoContext():
        await Ask()  # HERE


class NoContext:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *args: Any) -> None: ...


async def ticks() -> Any:
    await Ask()
    yield 1


async def over_async_generator() -> None:
    async for _ in ticks():  # HERE
        pass


async def numbers() -> Any:
    yield 1


async def in_async_for() -> None:
    async for _ in numbers():
        await Ask()  # HERE


async def anext_of_async_generator() -> None:
    await anext(ticks())  # HERE


async def in_comprehension() -> None:
    [
        await hold(x)  # HERE
        for x in (1, 2)
    ]


async def over_generator() -> None:
    for _ in (x for x in (1, 2)):
        await Ask()  # HERE


async def over_dict() -> None:
    for _ in {1: 2}:
        await Ask()  # HERE


async def over_map() -> None:
    for _ in map(str, (1, 2)):
        await Ask()  # HERE


async def keeps_coroutine() -> None:
    later = hold(1)
    try:
        await one()
    finally:
        later.close()


async def keeps_generator() -> Any:
    later = (x for x in (1, 2))
    await Ask()  # HERE
    return later


async def keeps_object(thing: Any = None) -> Any:
    thing = thing or object()
    await Ask()  # HERE
    return thing


async def keeps_deque() -> Any:
    thing = [collections.deque()]
    await Ask()  # HERE
    return thing


async def keeps_melting() -> Any:
    thing = Melting()
    await Ask()  # HERE
    return thing


async def keeps_record_of_object() -> Any:
    thing = Record(object())
    await Ask()  # HERE
    return thing


async def keeps_by_identity() -> Any:
    thing = ByIdentity()
    await Ask()  # HERE
    return thing


async def keeps_exception() -> Any:
    thing = ValueError()
    await Ask()  # HERE
    return thing


async def keeps_cached_record() -> Any:
    thing = Record(1)
    vars(thing)["cache"] = 1
    await Ask()  # HERE
    return thing


class Both(Box):
    def position_key(self) -> int:
        return 1


class MoreSlots(Box):
    __slots__ = ("__hidden",)


class FieldsNotTuple:
    position_fields = "value"


class FieldsOfList(list):  # type: ignore[type-arg]
    position_fields = ()


class TuplePlus(tuple):  # type: ignore[type-arg]
    pass


class Selfish:
    def position_key(self) -> Any:
        return self


class Keyed:
    def position_key(self) -> Any:
        return object()


async def keeps(thing: Any) -> Any:
    await Ask()  # HERE
    return thing


async def keeps_stray_attribute() -> Any:
    thing = Box(1)
    thing.stray = 1  # type: ignore[attr-defined]
    await Ask()  # HERE
    return thing


async def one() -> None:
    await Ask()


async def asks(what: Any) -> None:
    await Ask(what)  # HERE


class NoOp:
    def __await__(self) -> Any:
        yield Ask()


class Stranger(Op):
    """An operation that is no record."""


class OtherAwait(Op):
    def __await__(self) -> Any:
        result = yield self
        return result


@types.coroutine
def by_generator() -> Any:
    yield Ask()


async def awaits(thing: Any) -> None:
    await thing  # HERE


def shares_list() -> Any:
    log: list[int] = []

    async def run() -> None:
        await Ask()  # HERE
        log.append(1)

    return run()


def rebinds() -> Any:
    count = 0

    async def run() -> None:
        nonlocal count
        await Ask()  # HERE
        count += 1

    return run()


async def keeps_rebinding() -> Any:
    count = 0

    def bump() -> None:
        nonlocal count
        count += 1

    await Ask()  # HERE
    bump()


def attributed() -> Any:
    def run() -> None: ...

    run.calls = 0  # type: ignore[attr-defined]
    return run


REFUSED: list[tuple[Any, Callable[[], Any], str]] = [
    (in_call, in_call, "call's arguments"),
    (in_method_call, in_method_call, "call's arguments"),
    (in_own_method_call, in_own_method_call, "call's arguments"),
    (in_constructor, in_constructor, "call's arguments"),
    (in_keyword_call, in_keyword_call, "call's arguments"),
    (in_star_call, in_star_call, "call's arguments"),
    (in_call_of_an_object, in_call_of_an_object, "call's arguments"),
    (in_try, in_try, "'try'"),
    (in_loop_in_try, in_loop_in_try, "'try'"),
    (in_except, in_except, "'except'"),
    (in_finally, in_finally, "'finally'"),
    (in_finally_after_return, in_finally_after_return, "'finally'"),
    (in_with, in_with, "'with'"),
    (enter_async_with, enter_async_with, "'async with'"),
    (in_async_with, in_async_with, "'with'"),
    (over_async_generator, over_async_generator, "'async for'"),
    (in_async_for, in_async_for, "a suspended async_generator"),
    (anext_of_async_generator, anext_of_async_generator, "async_generator_asend"),
    (in_comprehension, in_comprehension, "inside a comprehension"),
    (over_generator, over_generator, "generator"),
    (over_dict, over_dict, "dict_keyiterator"),
    (over_map, over_map, "map"),
    (keeps_generator, keeps_generator, "generator"),
    (keeps_object, keeps_object, "builtins.object"),
    (keeps_deque, keeps_deque, "collections.deque"),
    (keeps_melting, keeps_melting, "not frozen"),
    (keeps_record_of_object, keeps_record_of_object, "builtins.object"),
    (keeps_by_identity, keeps_by_identity, "identity"),
    (keeps_exception, keeps_exception, "ValueError"),
    (keeps_cached_record, keeps_cached_record, "'cache' is no dataclass field"),
    (keeps_stray_attribute, keeps_stray_attribute, "'stray' is not in position_fields"),
    (keeps, lambda: keeps(MoreSlots(1)), "'_MoreSlots__hidden' is not in position_fields"),
    (keeps, lambda: keeps(Both(1)), "keep one"),
    (keeps, lambda: keeps(FieldsNotTuple()), "not a tuple"),
    (keeps, lambda: keeps(FieldsOfList()), "base class list"),
    (keeps, lambda: keeps(TuplePlus()), "TuplePlus"),
    (keeps, lambda: keeps(Selfish()), "the object itself"),
    (keeps, lambda: keeps(Keyed()), "position_key() contains"),
    (keeps, lambda: keeps(attributed()), "attributes"),
    (keeps_rebinding, keeps_rebinding, "'count'"),
    (shares_list, shares_list, "a list of the enclosing function"),
    (rebinds, rebinds, "'count' is rebound"),
    (asks, lambda: asks([]), "a list, which may change"),
    (asks, lambda: asks((Box(1),)), "a Box, which may change"),
    (asks, lambda: asks(object()), "builtins.object"),
    (awaits, lambda: awaits(Stranger()), "Stranger"),
    (awaits, lambda: awaits(NoOp()), "awaits a builtins.generator"),
    (awaits, lambda: awaits(OtherAwait()), "awaits a builtins.generator"),
    (awaits, lambda: awaits(by_generator()), "awaits a builtins.generator"),
]


def here(function: Callable[..., Any]) -> int:
    lines, first = inspect.getsourcelines(function)
    return next(first + number for number, line in enumerate(lines) if "# HERE" in line)


@pytest.mark.parametrize(
    ("function", "start", "words"), REFUSED, ids=[f"{f.__name__}-{w}" for f, _, w in REFUSED]
)
def test_refused_with_file_line_and_reason(
    function: Callable[..., Any], start: Callable[[], Any], words: str
) -> None:
    with pytest.raises(UnsupportedPosition) as caught:
        Positions(start)
    text = str(caught.value)
    assert text.startswith(f"{__file__}:{here(function)}: {function.__name__}")
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


# -- the table -------------------------------------------------------------------------------


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
        closed.append(len(table._live))
    assert max(closed) == 8
    table.close()
    assert not table._live
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
    assert all(file == __file__ for _, file, _ in lines)
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


def calls_with_awaits(source: str) -> list[int]:
    """Lines of calls that await something among their arguments."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        if any(isinstance(inner, ast.Await) for inner in ast.walk(argument))
    ]


def test_no_line_of_the_model_awaits_inside_a_call() -> None:
    assert calls_with_awaits("async def f():\n  g(1)\n  g(x=[await h()])") == [3]
    rooms = ["kernel", "mmu", "versions", "arch", "scenarios"]
    package = Path(tdpmmu.__file__).parent
    files = [path for room in rooms for path in (package / room).rglob("*.py")]
    assert len(files) > 100
    found = {path.name: calls_with_awaits(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("stale", [False, True])
def test_frames_that_have_not_moved(stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of outer frames is what they would say again; if it is not, that is noticed."""
    from tdpmmu.scenarios.zoo.run import BUG, question
    from tdpmmu.worlds.explore import position
    from tdpmmu.worlds.explore.engine import PLAIN, Budget, explore

    real = position.position_key
    kept = wrong = 0

    def both(coro: Any, op: Any, outer: Any = None) -> Any:
        nonlocal kept, wrong
        if stale and outer:
            outer[0] = (*outer[0][:2], (*outer[0][2], "stale"))
        kept += bool(outer)
        key = real(coro, op, outer)
        wrong += key != real(coro, op)
        return key

    monkeypatch.setattr(position, "position_key", both)
    try:
        explore(question("z1", BUG).build().machine, loop=PLAIN, budget=Budget(states=300))
    except position.UnsupportedPosition:
        assert stale
    assert kept > 50
    assert bool(wrong) is stale
