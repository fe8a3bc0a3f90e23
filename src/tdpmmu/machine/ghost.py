"""Ghost state: what a property remembers.  It is part of the state but no thread can see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tdpmmu.events.records import Event
from tdpmmu.machine.state import Cell

if TYPE_CHECKING:
    from tdpmmu.machine.op import Step

HARM, DISCIPLINE = "harm", "discipline"


class Ghost:
    """A watcher.  It hears the events it names, keeps one hashable value, and may cry out.

    ``observe`` must be a pure function of the state and the event: no history, no time, no counters
    that grow.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    meaning: ClassVar[str]
    hears: ClassVar[tuple[type[Event], ...]]
    initial: ClassVar[object] = None
    history: ClassVar[bool] = False
    """Whether it has to hear what happened before the first state, too."""

    def __init__(self) -> None:
        self.cell: Cell | None = None

    def begin(self, step: Step) -> None:
        """Look at the first state, where what happened before does not say enough."""

    def observe(self, step: Step, event: Event) -> None:
        """Take note of ``event``; call ``step.violate(self, sentence)`` if it breaks the rule."""
        raise TypeError(f"{type(self).__name__} hears events but has no observe()")
