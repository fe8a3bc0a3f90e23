"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

_FOR_TEMPLATE = ("text", "token", "strip")
"""What the template shows itself, and the script has no use for."""


def page(
    runs: Sequence[Mapping[str, Any]], title: str, verdict: Mapping[str, Any] | None = None
) -> str:
    """``runs`` are those of :func:`~tdpmmu.render.report.run.run_data`, each with its ``token`` and
    its ``text``; ``verdict`` says what a search came to: ``status``, ``what``, ``sentence``,
    ``facts``.
    """
    here = files("tdpmmu.render.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(here.joinpath("report.html.j2").read_text("utf-8"))
    data = [{key: run[key] for key in run if key not in _FOR_TEMPLATE} for run in runs]
    return template.render(
        title=title,
        version=version("tdpmmu"),
        css=Markup(here.joinpath("report.css").read_text("utf-8")),
        js=Markup(here.joinpath("report.js").read_text("utf-8")),
        data=_script_data(data),
        runs=[{**run, "strip": strip(run)} for run in runs],
        verdict=verdict,
    )


def strip(run: Mapping[str, Any]) -> list[dict[str, int]]:
    """Who runs when: ``length`` operations from ``start`` on, in a lane each."""
    bars = []
    start = 0
    for thread, turn in groupby(step["thread"] for step in run["steps"]):
        length = len(list(turn))
        bars.append({"start": start, "length": length, "lane": run["order"].index(thread)})
        start += length
    return bars


def _script_data(data: Any) -> Markup:
    """JSON that no browser takes for markup."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
