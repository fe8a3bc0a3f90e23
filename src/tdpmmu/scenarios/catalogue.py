"""Scenarios and patches by the names that users and tokens give them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.script import Script
from tdpmmu.versions import registry

SCENARIOS: dict[str, type[Any]] = {cls.name: cls for cls in (NxRecovery, Script)}


def scenario_class(name: str) -> type[Any]:
    """The family of scenarios of that name; ``ValueError`` with the nearest ones."""
    if name not in SCENARIOS:
        instead = registry.instead_of(name, [*SCENARIOS, "FILE.py"])
        raise ValueError(f"unknown scenario {name!r}; {instead}")
    return SCENARIOS[name]


def patch_class(name: str) -> type[Any]:
    """A patch by name: of the registry, ``z6`` (a bug of the zoo) or ``z57-fix`` (its fix)."""
    if name in registry.PATCHES:
        return registry.PATCHES[name]
    from tdpmmu.scenarios.zoo import entries

    for entry in entries():
        if name == entry.id and entry.patch is not None:
            return entry.patch
        if name == f"{entry.id}-fix" and entry.fix is not None:
            return entry.fix
    from tdpmmu.scenarios.removal import removal

    removed = removal(name)
    return removed if removed is not None else registry.patch_class(name)


def parameter(cls: type[Any], text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a field of a scenario and a value of its type."""
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    known = {field.name: field for field in dataclasses.fields(cls)}
    if not equals:
        raise ValueError(f"--set {text}: expected NAME=VALUE")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2) or sorted(known)
        raise ValueError(f"--set {text}: {cls.name} has no {name}; it has {', '.join(near)}")
    kind: Any = type(known[name].default)
    if kind is bool:
        if value not in ("true", "false"):
            raise ValueError(f"--set {text}: true or false")
        return name, value == "true"
    if kind is int:
        try:
            return name, int(value, 0)
        except ValueError:
            raise ValueError(f"--set {text}: {name} takes a number") from None
    return name, value
