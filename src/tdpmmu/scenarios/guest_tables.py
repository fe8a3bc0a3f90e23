"""Guest page tables as text, for scripts."""

from __future__ import annotations

from tdpmmu.arch.guest import GuestPaging, parse_gpte


def parse_tables(text: str, fanout: int) -> dict[int, tuple[int, ...]]:
    """``GFN: ENTRY ENTRY; ...``; what is missing is not present.  ``ValueError`` if not so."""
    tables: dict[int, tuple[int, ...]] = {}
    for part in text.replace("\n", ";").split(";"):
        if not part.strip():
            continue
        gfn, colon, entries = part.partition(":")
        if not colon or not gfn.strip().isdecimal():
            raise ValueError(f"guest table {part.strip()!r}: expected GFN: ENTRY ENTRY ...")
        gptes = [parse_gpte(entry) for entry in entries.split()]
        if len(gptes) > fanout:
            raise ValueError(
                f"guest table {gfn.strip()}: {len(gptes)} entries, but only {fanout} fit"
            )
        tables[int(gfn)] = (*gptes, *(0,) * (fanout - len(gptes)))
    return tables


def parse_root(text: str, tables: dict[int, tuple[int, ...]], levels: int) -> GuestPaging:
    """``GFN`` or ``GFN/LEVELS``: a table that is there."""
    gfn, slash, own = text.partition("/")
    if not gfn.isdecimal() or int(gfn) not in tables or (slash and not own.isdecimal()):
        known = ", ".join(map(str, tables))
        raise ValueError(f"cr3 {text!r}: expected GFN or GFN/LEVELS of a guest table ({known})")
    if slash and not 1 <= int(own) <= 5:
        raise ValueError(f"cr3 {text!r}: expected 1 to 5 levels")
    return GuestPaging(int(gfn), int(own) if slash else levels)
