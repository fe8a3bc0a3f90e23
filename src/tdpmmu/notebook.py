"""What a notebook starts with: questions, worlds driven by hand, traces::

    from tdpmmu.notebook import check, world, trace

Results show themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdpmmu.scenarios.by_hand import World
    from tdpmmu.scenarios.question import Question, Verdict
    from tdpmmu.trace.stats import TraceStats

Patch = str | type[Any]
"""A patch by name, as ``FILE.py:CLASS``, or the class itself if it is in a file."""


def question(
    kernel: str = "6.18",
    patch: Patch | Sequence[Patch] = (),
    scenario: str | type[Any] = "nx-recovery",
    properties: str = "all",
    **parameters: Any,
) -> Question:
    """What to ask; ``scenario`` and ``patch`` are named as on the command line, or are classes.

    ValueError, in a line, for a question that makes no sense.
    """
    from tdpmmu.cli.errors import UsageError
    from tdpmmu.cli.questions import make_question

    patches = (patch,) if isinstance(patch, (str, type)) else tuple(patch)
    names = tuple(_reference(one) for one in patches)
    try:
        return make_question(_reference(scenario), kernel, names, parameters, properties)
    except UsageError as error:
        raise ValueError(str(error)) from None


def check(*, seconds: float = 60, states: int = 0, **asked: Any) -> Verdict:
    """Explore every interleaving of a :func:`question`; ``seconds`` and ``states``: the budget."""
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.exploration import Budget

    return ask(question(**asked), budget=Budget(states, seconds, 0))


def world(**asked: Any) -> World:
    """Drive the scenario of a :func:`question` by hand."""
    from tdpmmu.scenarios.by_hand import World

    return World(question(**asked))


def trace(file: str) -> TraceStats:
    """What lives in the page tables of a recorded kernel, at each marker; ValueError if broken."""
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.stats import trace_stats

    with open_trace(file) as reader:
        return trace_stats(reader, Detector(None, None))


def _reference(one: str | type[Any]) -> str:
    """``FILE.py:CLASS`` of a class, by a path from here if it is below."""
    if isinstance(one, str):
        return one
    try:
        file = Path(inspect.getfile(one)).resolve()
    except (OSError, TypeError):
        raise ValueError(f"{one.__qualname__} is in no file; a token could not name it") from None
    here = Path.cwd()
    path = file.relative_to(here) if file.is_relative_to(here) else file
    return f"{path}:{one.__qualname__}"
