"""Pages for a browser: of a token, or of a verdict with all its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Verdict
    from tdpmmu.scenarios.token import Reproduction


def write_run(path: str, done: Reproduction) -> None:
    """One run; ``-`` is standard output."""
    from tdpmmu.scenarios.showing import report

    _write(path, report([done]))


def write_verdict(path: str, verdict: Verdict) -> None:
    """The verdict, what it rests on, and each broken property's run."""
    from tdpmmu.scenarios.showing import verdict_report

    _write(path, verdict_report(verdict))


def _write(path: str, text: str) -> None:
    from tdpmmu.cli.output import whole_file

    with whole_file(path) as file:
        file.write(text.encode())
