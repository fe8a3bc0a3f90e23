"""A replay's result as text and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tdpmmu.conformance.replay.result import Divergence, Result

GUARDS = 6
"""How many of the operations before a divergence are shown."""


def to_text(result: Result) -> str:
    """For a terminal, without the final newline; the verdict comes last."""
    found = ", found out" if result.detected else ""
    lines = [f"{result.name}: {result.format_name}, kernel {result.kernel}{found}"]
    for line, doubt in result.doubts[:10]:
        lines.append(f"line {line}: {doubt}")
    for vm in result.vms:
        lines += ["", f"{vm.name}:", *(f"  {line}" for line in _one_vm(vm))]
    if result.vms:
        lines += ["", f"{len(result.vms)} VMs"]
    else:
        lines += _one_vm(result)
    if result.ambiguous:
        lines.append(
            f"ambiguous: {result.ambiguous} SPTE changes may be of any VM, and were not compared"
        )
    if result.vms:
        lines.append(_verdict(result))
    return "\n".join(lines)


def _one_vm(result: Result) -> list[str]:
    lines = _table("from outside, as the trace says", result.inputs)
    lines += _table("from outside, inferred", result.inferred)
    lines += _table("done by the model, not traced by the kernel", result.untraced)
    lines += _table("explained by hardware", result.explained)
    for what, (agree, of) in result.others.items():
        lines.append(f"{agree} of {of} {what} agree")
    if result.divergences:
        lines += _divergence(result.divergences[0])
        more = len(result.divergences) - 1 + result.more_divergences
        if more:
            lines.append(f"and {more} more divergences, in calls that begin after it")
        lines.append(f"the first {result.prefix} SPTE changes agree")
    return [*lines, _verdict(result)]


def _verdict(result: Result) -> str:
    return f"{result.agree} of {result.changes} SPTE changes agree"


def to_json(result: Result) -> dict[str, Any]:
    """As plain data."""
    return {**asdict(result), "agrees": result.agrees}


def _table(title: str, table: dict[str, int]) -> list[str]:
    if not table:
        return []
    return [f"{title}:", *(f"{number:>8} {what}" for what, number in table.items())]


def _divergence(one: Divergence) -> list[str]:
    lines = [
        f"first divergence at line {one.line}, in {one.call}:",
        f"  kernel: {one.kernel}",
        f"  model:  {one.model}",
    ]
    if one.where:
        lines.append(f"  model stands in {' > '.join(one.where)}")
    if one.guards:
        lines.append("  and came there by")
        lines += [f"    {guard}" for guard in one.guards[-GUARDS:]]
    return lines
