"""Pages for a browser: of a token, or of a verdict with all its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Verdict
    from tdpmmu.scenarios.token import Reproduction


def write_report(
    path: str, runs: Sequence[Reproduction], verdict: Mapping[str, Any] | None = None
) -> None:
    """One file with these runs; ``-`` is standard output."""
    from tdpmmu.cli.output import whole_file

    text = report(runs, verdict)
    with whole_file(path) as file:
        file.write(text.encode())


def write_verdict(path: str, verdict: Verdict) -> None:
    """The verdict, what it rests on, and each broken property's run."""
    from dataclasses import fields

    from tdpmmu.cli.check import asked, rests_on
    from tdpmmu.scenarios.token import decode, reproduce

    scenario = verdict.question.scenario
    parameters = ", ".join(f"{one.name} {getattr(scenario, one.name)}" for one in fields(scenario))
    runs = [reproduce(decode(verdict.tokens[found.prop])) for found in verdict.violations]
    write_report(
        path,
        runs,
        {
            "status": verdict.status,
            "what": asked(verdict.question),
            "sentence": verdict.sentence(),
            "facts": [*rests_on(verdict), f"Parameters: {parameters}."],
        },
    )


def report(runs: Sequence[Reproduction], verdict: Mapping[str, Any] | None = None) -> str:
    """The page as text."""
    from tdpmmu.render.report.page import page

    title = verdict["what"] if verdict else f"{runs[0].token.prop}: {runs[0].token.scenario}"
    return page([_run(done) for done in runs], f"{title} - tdpmmu", verdict)


def _run(done: Reproduction) -> dict[str, Any]:
    from tdpmmu.cli.explain import scene_of, to_lines, told
    from tdpmmu.properties.catalogue import meaning
    from tdpmmu.render.lines import plain
    from tdpmmu.render.report.run import run_data

    said = told(done)
    return {
        **run_data(done.records, said, scene_of(done), meaning(said.prop)),
        "token": done.token.encode(),
        "text": plain(to_lines(done)),
    }
