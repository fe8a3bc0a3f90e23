"""What a replay has found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where model and kernel part: at ``line`` of the trace, in ``call`` of a thread.

    ``kernel`` and ``model`` are what each did; ``where`` is the model's call stack, outermost
    first, ``guards`` what it looked at just before, with what it found.
    """

    line: int
    call: str
    kernel: str
    model: str
    where: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """``agree`` of ``changes`` SPTE changes; ``prefix`` of them before the first divergence.

    ``inferred``, ``untraced``, ``explained`` count by kind what had to be guessed, what the model
    did that the kernel does not trace, and what hardware explains; ``others`` are further events,
    how many agree and of how many.
    """

    name: str
    kernel: str
    format_name: str
    detected: bool = False
    changes: int = 0
    agree: int = 0
    prefix: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    more_divergences: int = 0
    inputs: dict[str, int] = field(default_factory=dict)
    inferred: dict[str, int] = field(default_factory=dict)
    untraced: dict[str, int] = field(default_factory=dict)
    explained: dict[str, int] = field(default_factory=dict)
    others: dict[str, tuple[int, int]] = field(default_factory=dict)
    doubts: list[tuple[int, str]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Everything that was compared agrees."""
        return not self.divergences


def count(table: dict[str, int], what: str, by: int = 1) -> None:
    """One more of a kind."""
    if by:
        table[what] = table.get(what, 0) + by
