"""SPTEs explained, for whoever asks: as text, or as JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.arch.decode import Decoded

FORMAT, KERNEL, PHYS_BITS = "npt", "6.12", 51
"""What is assumed of an SPTE unless somebody says otherwise."""

_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]+)")


def parse_spte(text: str) -> int:
    """The SPTE in ``text``: hexadecimal, any case, "0x" optional; UsageError if it is not one."""
    match = _HEX.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not an SPTE: expected hexadecimal, like 0x800000000ce00ee7")
    value = int(match[1], 16)
    if value >> 64:
        raise UsageError(f"{text} is not an SPTE: expected at most 64 bits (16 hexadecimal digits)")
    return value


def explain_sptes(
    sptes: Sequence[str],
    format_name: str = FORMAT,
    kernel: str = KERNEL,
    level: int | None = None,
    phys_bits: int = PHYS_BITS,
    as_json: bool = False,
) -> None:
    """Print what SPTEs mean; UsageError if something is not an SPTE, or not known."""
    from tdpmmu.arch.decode import decode_spte
    from tdpmmu.arch.spte import spte_format

    values = [parse_spte(text) for text in sptes]
    try:
        fmt = spte_format(format_name, kernel)
        decoded = [decode_spte(value, fmt, level, phys_bits=phys_bits) for value in values]
    except ValueError as error:
        raise UsageError(str(error)) from None
    if as_json:
        import json

        json.dump([to_json(one) for one in decoded], sys.stdout, indent=2)
        print()
    else:
        print("\n\n".join(to_text(one) for one in decoded))


def to_json(decoded: Decoded) -> dict[str, Any]:
    """The fields of :class:`Decoded`, the SPTE and its address as hexadecimal strings."""
    from dataclasses import asdict

    fields = asdict(decoded)
    fields["spte"] = f"{decoded.spte:#x}"
    fields["address"] = None if decoded.address is None else f"{decoded.address:#x}"
    fields["kind"] = decoded.kind
    fields["malformed"] = decoded.malformed
    return fields


def _permissions(decoded: Decoded) -> str:
    named = [
        ("read", decoded.readable),
        ("write", decoded.writable),
        ("execute", decoded.executable),
        ("user", decoded.user),
    ]
    return ", ".join(name if value else f"no {name}" for name, value in named if value is not None)


def _rows(decoded: Decoded) -> list[tuple[str, str]]:
    rows = [("format", f"{decoded.format}, as Linux {decoded.kernel} writes it")]
    if decoded.state == "present":
        rows.append(("pfn", f"{decoded.pfn:#x} (address {decoded.address:#x})"))
        rows.append(("access", _permissions(decoded)))
        ad = [] if decoded.ad == "enabled" else [f"A/D bits {decoded.ad}"]
        ad.append("accessed" if decoded.accessed else "not accessed")
        if decoded.access_track:
            ad.append("access-tracked")
        if decoded.dirty is not None:
            ad.append("dirty" if decoded.dirty else "clean")
        rows.append(("A/D", ", ".join(ad)))
        if decoded.memory_type is not None:
            pat = ", the guest's PAT ignored" if decoded.ignore_pat else ""
            rows.append(("memory type", decoded.memory_type + pat))
    elif decoded.state == "MMIO":
        rows.append(("gfn", f"{decoded.mmio_gfn:#x}"))
        rows.append(("generation", f"{decoded.mmio_generation:#x}"))
    return rows


def to_text(decoded: Decoded) -> str:
    """Several lines for a terminal, without the final newline."""
    malformed = "malformed: " if decoded.malformed else ""
    lines = [f"{decoded.spte:#x}: {malformed}{decoded.kind}"]
    lines += [f"  {name:<12} {text}" for name, text in _rows(decoded)]
    lines += [f"  {'malformed':<12} {problem}" for problem in decoded.problems]
    lines += [f"  {'hint':<12} {hint}" for hint in decoded.hints]
    for field in () if decoded.state in ("non-present", "frozen") else decoded.bits:
        where = str(field.low) if field.high == field.low else f"{field.high}:{field.low}"
        lines.append(f"  {where:>5} {field.value:>#12x}  {field.name:<34} {field.meaning}".rstrip())
    return "\n".join(lines)
