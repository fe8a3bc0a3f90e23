"""What rendering expects of a run: one record for each operation, whoever made it.

:class:`tdpmmu.worlds.replay.Record` is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tdpmmu.events.records import Event
from tdpmmu.machine.op import Op
from tdpmmu.machine.state import State


class PlaceLike(Protocol):
    """A line of code.

    ``call`` tells calls of one thread apart, ``arguments`` are the call's without ``self``.
    """

    @property
    def function(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def line(self) -> int: ...

    @property
    def call(self) -> int: ...

    @property
    def arguments(self) -> Sequence[tuple[str, Any]]: ...


class RecordLike(Protocol):
    """One operation of one thread, and what came of it."""

    @property
    def number(self) -> int: ...

    @property
    def thread(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def op(self) -> Op: ...

    @property
    def result(self) -> Any: ...

    @property
    def events(self) -> Sequence[Event]: ...

    @property
    def before(self) -> State: ...

    @property
    def after(self) -> State: ...

    @property
    def place(self) -> Sequence[PlaceLike]: ...

    @property
    def failure(self) -> str | None: ...
