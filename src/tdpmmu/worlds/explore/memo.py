"""What is known of one thing, by those chunks of the shared state that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

Found = TypeVar("Found")


def _nothing(row: object) -> object:
    return None


class Memo(Generic[Found]):
    """Answers, found again for every shared state that agrees on what was looked at."""

    __slots__ = ("views",)

    def __init__(self) -> None:
        self.views: dict[tuple[int, ...], tuple[Callable[[Any], object], dict[object, Found]]] = {}

    def find(self, row: Sequence[int], looked: set[int] | None = None) -> Found | None:
        """The answer for ``row`` (numbers of chunks); what it depends on is added to ``looked``."""
        for chunks, (these, known) in self.views.items():
            found = known.get(these(row))
            if found is not None:
                if looked is not None:
                    looked.update(chunks)
                return found
        return None

    def add(self, looked: set[int], row: Sequence[int], found: Found) -> tuple[int, ...]:
        """Remember an answer that was found by looking at some chunks of ``row``: which, sorted."""
        chunks = tuple(sorted(looked))
        view = self.views.get(chunks)
        if view is None:
            these = itemgetter(*chunks) if chunks else _nothing
            view = self.views[chunks] = (these, {})
        view[1][view[0](row)] = found
        return chunks
