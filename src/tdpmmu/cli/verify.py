"""``tdpmmu trace verify``: hold a real kernel's trace against the rules."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.trace.verify.verifier import Result

_MOST_PROBLEMS = 5


def verify(
    file: Annotated[str, typer.Argument(help="A trace; - is stdin.")],
    kernel: Annotated[
        str | None,
        typer.Option(help="5.12-rc4, 5.12, 5.13, 6.1, 6.12 or 6.18; default: found out."),
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="npt or ept; default: found out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Rebuild every VM's TDP page tables and check all properties that the events allow.

    Example: tdpmmu trace verify trace.txt.xz

    Exit codes: 0 all hold, 1 one is violated, 2 bad usage or a broken trace.
    """
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.text import TraceError, open_trace
    from tdpmmu.trace.verify.verifier import verify as verify_trace

    try:
        detector = Detector(format_name, kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        with open_trace(file) as reader:
            result = verify_trace(reader, detector)
    except TraceError as error:
        raise UsageError(str(error)) from None
    if as_json:
        json.dump(to_json(result), sys.stdout, indent=2)
        print()
    else:
        print(to_text(result))
    if result.violations:
        raise typer.Exit(1)


def to_json(result: Result) -> dict[str, Any]:
    """The result as plain data."""
    return {
        "file": result.name,
        "verdict": "violated" if result.violations else "holds",
        "format": result.format_name,
        "kernel": result.kernel_text,
        "events": result.events,
        "spte_changes": result.changes,
        "vms_by_pointer": result.vms,
        "roots": result.roots,
        "ambiguous_changes": result.ambiguous,
        "properties": [
            {**asdict(one), "violations": result.counts.get(one.prop, 0)} for one in result.checked
        ],
        "violations": [
            {
                "property": one.prop,
                "sentence": one.sentence,
                "evidence": [{"line": line, "text": text} for line, text in one.evidence],
            }
            for one in result.violations
        ],
        "problems": [{"line": line, "what": what} for line, what in result.problems],
    }


def to_text(result: Result) -> str:
    """The result for a terminal, without the final newline."""
    broken = [f"{name} ({count})" for name, count in sorted(result.counts.items())]
    verdict = f"violated: {', '.join(broken)}" if broken else "holds"
    if not broken and all(one.coverage == "not at all" for one in result.checked):
        verdict = "nothing to check"
    lines = [
        f"{result.name}: {verdict}",
        f"  {result.format_name}, kernel {result.kernel_text}; {result.events:,} events, "
        f"{result.changes:,} of them SPTE changes; {_count(result.roots, 'root')}",
        "",
    ]
    for one in result.checked:
        count = result.counts.get(one.prop, 0)
        said = "violated" if count else "-" if one.coverage == "not at all" else "holds"
        lines.append(f"  {said:<9} {one.prop:<16} {one.coverage:<11} {_reasons(one.why)}".rstrip())
    lines += _wanting(result)
    for found in result.violations:
        lines += ["", f"{found.prop}: {found.sentence}"]
        lines += [f"  line {line}: {text}" for line, text in found.evidence]
    return "\n".join(lines)


def _reasons(why: list[str]) -> str:
    return f"({'; '.join(why)})" if why else ""


def _wanting(result: Result) -> list[str]:
    """What the trace lacks."""
    lines = []
    enable: dict[str, None] = {}
    for one in result.checked:
        enable.update(dict.fromkeys(one.enable))
    if enable:
        lines += ["", "To check more, record:"]
        lines += [f"  {one}" for one in enable]
    if result.ambiguous:
        lines += [
            "",
            f"Ambiguous: {_count(result.ambiguous, 'change')} may belong to another VM or root "
            "than was assumed (the event names neither).",
        ]
    if result.problems:
        lines += ["", "The trace does not fit together:"]
        shown = result.problems[:_MOST_PROBLEMS]
        lines += [f"  line {line}: {what}" for line, what in shown]
        if len(result.problems) > len(shown):
            lines.append(f"  and {len(result.problems) - len(shown):,} more")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
