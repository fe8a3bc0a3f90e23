"""What is asked of a search, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdpmmu.worlds.explore.storage import Left
from tdpmmu.worlds.explore.turn import Turn

INTERRUPTED = "interrupted"
"""Why a search stopped on Ctrl-C; what it had covered is in the exploration."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Where to stop: states, seconds, MiB of memory; 0 is no limit."""

    states: int = 0
    seconds: float = 0
    memory: int = 0


@dataclass(slots=True)
class Counterexample:
    """The first way found to break a property: turns from the initial state."""

    prop: str
    kind: str
    sentence: str
    turns: list[Turn]
    state: int

    @property
    def operations(self) -> int:
        """Its length."""
        return sum(len(turn.alternatives) for turn in self.turns)


@dataclass(slots=True)
class Exploration:
    """What came of a search."""

    violations: list[Counterexample] = field(default_factory=list)
    states: int = 0
    transitions: int = 0
    depth: int = 0
    shared: int = 0
    positions: list[int] = field(default_factory=list)
    segments_run: int = 0
    replays: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    stopped: str = ""
    within: int = 0
    """Turns from the start within which everything was seen, of a search that was cut short."""
    unseen: tuple[str, ...] = ()
    liveness: str = "not checked"
    mistrusted: tuple[str, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes of the compiled loop's arrays, by what they are for."""
    left: Left | None = None
    """What a set that leaves states out may have left out."""

    @property
    def ended(self) -> bool:
        """Whether all was searched, but for what such a set left out."""
        return self.exhausted or (self.left is not None and self.left.ended)
