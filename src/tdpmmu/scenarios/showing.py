"""Runs and verdicts for people: what rendering needs to know of them, as lines and as pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from html import escape
from typing import TYPE_CHECKING, Any

from tdpmmu.properties.catalogue import meaning
from tdpmmu.render.interleaving import Scene, lines
from tdpmmu.render.lines import Line, plain
from tdpmmu.scenarios.token import Reproduction, Token, decode, reproduce

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Verdict

FRAME_HEIGHT = 760
"""Pixels of a page inside a notebook."""


def text_of(token: str, *, width: int = 80, ascii: bool = False) -> str:
    """The interleaving of an encoded token as plain text."""
    return plain(to_lines(reproduce(decode(token)), width=width, ascii=ascii))


def scene_of(done: Reproduction) -> Scene:
    """What rendering needs to know of a run."""
    built = done.subject.built
    return Scene(
        built.kvm.hardware,
        built.machine.layout,
        [thread.name for thread in built.machine.threads],
        done.subject.mmu_class,
        facts(done),
        done.waiting,
        done.loop,
        end_of(done),
    )


def facts(done: Reproduction) -> list[str]:
    """What was run: kernel, patches, scenario with its parameters, and how long it is."""
    token = done.token
    kernel = " with ".join(
        [f"Linux {token.kernel}", ", ".join(token.patches)][: 1 + bool(token.patches)]
    )
    parameters = _listed(token.parameters)
    switches = len({record.run for record in done.records}) - 1
    return [
        f"{kernel}; scenario {token.scenario}: {parameters}.",
        f"{len(done.records)} operations, {max(switches, 0)} context switches.",
    ]


def _listed(parameters: Iterable[tuple[str, Any]]) -> str:
    """Parameters in words; those that are empty say nothing."""
    return ", ".join(f"{name} {value}" for name, value in parameters if value != "")


def end_of(done: Reproduction) -> str:
    """What to say at the end of a run that does not end in its violation."""
    if done.problem is not None:
        return f"The schedule fits no longer: {done.problem}"
    return "" if done.sentence else "The violation does not come any more."


def to_lines(
    done: Reproduction, *, width: int = 80, ascii: bool = False, every: bool = False
) -> list[Line]:
    """The interleaving for a terminal or a mail."""
    return lines(done.records, told(done), scene_of(done), width=width, ascii=ascii, every=every)


def told(done: Reproduction) -> Token:
    """The token with what the replay says of its violation."""
    if done.sentence is None:
        return replace(done.token, kind="not reproduced")
    return replace(done.token, sentence=done.sentence)


def report(runs: Sequence[Reproduction], verdict: Mapping[str, Any] | None = None) -> str:
    """A page for a browser with these runs; ``verdict`` as :func:`of_verdict` makes it."""
    from tdpmmu.render.report.page import page

    title = verdict["what"] if verdict else f"{runs[0].token.prop}: {runs[0].token.scenario}"
    return page([_run(done) for done in runs], f"{title} - tdpmmu", verdict)


def verdict_report(verdict: Verdict) -> str:
    """A page with a verdict, what it rests on, and each broken property's run."""
    runs = [reproduce(decode(verdict.tokens[found.prop])) for found in verdict.violations]
    return report(runs, of_verdict(verdict))


def of_verdict(verdict: Verdict) -> dict[str, Any]:
    """A verdict in words: its status, what was asked, a sentence, and what that rests on."""
    scenario = verdict.question.scenario
    parameters = _listed((one.name, getattr(scenario, one.name)) for one in fields(scenario))
    return {
        "status": verdict.status,
        "what": verdict.question.title(),
        "sentence": verdict.sentence(),
        "facts": [*verdict.rests_on(), f"Parameters: {parameters}."],
    }


def framed(page: str) -> str:
    """A page inside another one, as a notebook."""
    return (
        f'<iframe srcdoc="{escape(page)}" style="width: 100%; height: {FRAME_HEIGHT}px; '
        f'border: 1px solid #8888; border-radius: 8px"></iframe>'
    )


def _run(done: Reproduction) -> dict[str, Any]:
    from tdpmmu.render.report.run import run_data

    said = told(done)
    return {
        **run_data(done.records, said, scene_of(done), meaning(said.prop)),
        "token": done.token.encode(),
        "text": plain(to_lines(done)),
    }
