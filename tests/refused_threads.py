"""Threads that stand where their future cannot be told from a key."""

from __future__ import annotations

import collections
import inspect
import types
from collections.abc import Callable
from typing import Any

from position_things import (
    PAGES,
    Ask,
    Box,
    ByIdentity,
    Melting,
    Page,
    Record,
    hold,
    one,
)

from tdpmmu.machine.op import Op


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
