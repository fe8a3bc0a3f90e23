"""What threads hold in the tests of positions, and the simplest of threads."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.position.frames import position_key


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


async def one() -> None:
    await Ask()


PAGES = (Page(1), Page(True), Page(2))
