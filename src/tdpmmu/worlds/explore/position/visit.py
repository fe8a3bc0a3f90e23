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


class Visit:
    """The objects with an identity, numbered in the order first met, and how to encode values.

    ``mutable`` names the last value met that can change.
    """

    __slots__ = ("encoders", "mutable", "seen")

    def __init__(self, encoders: Mapping[type, Encoder]) -> None:
        self.encoders = encoders
        # The objects are kept alive here: some exist only during the walk, and ids come back.
        self.seen: dict[int, tuple[int, Any]] = {}
        self.mutable: str | None = None

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
            return (SAME, known[0])
        self.seen[id(value)] = (len(self.seen), value)
        return None


Encoder = Callable[[Any, Visit], Hashable]
