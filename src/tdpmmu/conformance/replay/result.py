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

    If the trace has several VMs, each has its own result in ``vms``, and this one is of all of them
    but for what is before the first divergence.  ``ambiguous`` are SPTE changes of which the trace
    does not say whose they are; nobody has compared them.
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
    vms: list[Result] = field(default_factory=list)
    ambiguous: int = 0

    @property
    def agrees(self) -> bool:
        """Everything that was compared agrees."""
        return not self.divergences

    def add(self, part: Result) -> None:
        """Count in what one of several VMs has come to."""
        self.vms.append(part)
        self.changes += part.changes
        self.agree += part.agree
        self.divergences += part.divergences
        self.more_divergences += part.more_divergences
        self.doubts += [one for one in part.doubts if one not in self.doubts]
        for own, other in (
            (self.inputs, part.inputs),
            (self.inferred, part.inferred),
            (self.untraced, part.untraced),
            (self.explained, part.explained),
        ):
            for what, number in other.items():
                count(own, what, number)
        for event, (agree, of) in part.others.items():
            before = self.others.get(event, (0, 0))
            self.others[event] = before[0] + agree, before[1] + of


def count(table: dict[str, int], what: str, by: int = 1) -> None:
    """One more of a kind."""
    if by:
        table[what] = table.get(what, 0) + by
