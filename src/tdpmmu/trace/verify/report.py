"""The result of a verification as text and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tdpmmu.trace.verify.findings import NONE, Result

_MOST_PROBLEMS = 5


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
        "more_problems": result.more_problems,
    }


def summary(result: Result) -> str:
    """The verdict in a few words."""
    broken = [f"{name} ({count})" for name, count in sorted(result.counts.items())]
    if broken:
        return f"violated: {', '.join(broken)}"
    nothing = all(one.coverage == NONE for one in result.checked)
    return "nothing to check" if nothing else "holds"


def to_text(result: Result) -> str:
    """The result for a terminal, without the final newline."""
    lines = [
        f"{result.name}: {summary(result)}",
        f"  {result.format_name}, kernel {result.kernel_text}; {result.events:,} events, "
        f"{result.changes:,} of them SPTE changes; {_count(result.roots, 'root')}",
        "",
    ]
    for one in result.checked:
        count = result.counts.get(one.prop, 0)
        said = "violated" if count else "-" if one.coverage == NONE else "holds"
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
        more = len(result.problems) - len(shown) + result.more_problems
        if more:
            lines.append(f"  and {more:,} more")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
