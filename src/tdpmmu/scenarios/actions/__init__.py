"""What threads of a script can do: each module has a table ``ACTIONS``."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from tdpmmu.scenarios.actions.base import Action


@cache
def table() -> dict[str, Action]:
    """All actions by name, in the order of their modules."""
    found: dict[str, Action] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        found |= import_module(f"{__name__}.{module.name}").ACTIONS
    return found
