"""One walk over the values of a position: each becomes a hashable part of the key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final


class Mark:
    """A part of a key that equals nothing but itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


UNBOUND: Final = Mark("unbound")
SAME: Final = Mark("same as object")
EXHAUSTED: Final = Mark("exhausted")

NONE_MET_AGAIN: Final = 1 << 62
"""More than there are objects."""


class Visit:
    """The objects with an identity, numbered in the order first met, and how to encode values.

    ``mutable`` names the last value met that can change, ``lowest`` is the smallest number of an
    object that was met again.
    """

    __slots__ = ("encoders", "lowest", "mutable", "seen")

    def __init__(self, encoders: Mapping[type, Encoder]) -> None:
        self.encoders = encoders
        # The objects are kept alive here: some exist only during the walk, and ids come back.
        self.seen: dict[int, tuple[int, Any]] = {}
        self.mutable: str | None = None
        self.lowest = NONE_MET_AGAIN

    def encode(self, value: Any) -> Hashable:
        """What stands for ``value`` in a key: itself for the commonest types, else a tuple."""
        kind = type(value)
        if kind is int or kind is str or value is None:
            return value  # type: ignore[no-any-return]
        return self.encoders[kind](value, self)

    def again(self, value: Any) -> Hashable | None:
        """The back reference to an object met before; otherwise number it."""
        known = self.seen.get(id(value))
        if known is not None:
            self.lowest = min(self.lowest, known[0])
            return (SAME, known[0])
        self.seen[id(value)] = (len(self.seen), value)
        return None

    def forget(self, first: int) -> None:
        """Forget the objects from this number on."""
        while len(self.seen) > first:
            self.seen.popitem()


Encoder = Callable[[Any, Visit], Hashable]
