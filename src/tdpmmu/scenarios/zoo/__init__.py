"""The zoo: real upstream bugs, each put back and found, each fix clean."""

from __future__ import annotations

import difflib
import pkgutil
import re
from functools import cache
from importlib import import_module

from tdpmmu.scenarios.zoo.entry import Entry


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the order of their ids."""
    found: list[Entry] = []
    for module in pkgutil.iter_modules(__path__):
        if re.match(r"z\d", module.name):
            loaded = import_module(f"{__name__}.{module.name}")
            found += getattr(loaded, "ENTRIES", None) or (loaded.ENTRY,)
    ids = [entry.id for entry in found]
    for entry in found:
        entry.check()
        if ids.count(entry.id) > 1:
            raise ValueError(f"two zoo entries are called {entry.id}")
        if entry.fix_of is not None and entry.fix_of not in ids:
            raise ValueError(f"{entry.id}: no entry {entry.fix_of}")
    return tuple(sorted(found, key=lambda entry: _natural(entry.id)))


def entry(name: str) -> Entry:
    """The entry of that id; ``ValueError`` with the nearest ones if there is none."""
    table = {one.id: one for one in entries()}
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3) or sorted(table, key=_natural)[:3]
        raise ValueError(f"no zoo entry {name!r}; did you mean {', '.join(near)}?")
    return table[name]
