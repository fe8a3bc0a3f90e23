"""The model's functions that a run goes through, with their text."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tdpmmu.render.names import KernelNames, function_at
from tdpmmu.render.record import PlaceLike

_PACKAGE = Path(__file__).resolve().parents[2]


class Sources:
    """Numbers functions as they are met."""

    def __init__(self, names: KernelNames) -> None:
        self._names = names
        self._numbers: dict[tuple[str, str], int] = {}
        self._named: dict[str, list[int]] = {}
        self.functions: list[dict[str, Any]] = []

    def number(self, place: PlaceLike) -> int | None:
        """The number of the function of a place; None if the kernel has no such function."""
        name = self._names.name(place)
        if name is None:
            return None
        key = (place.file, place.function)
        if key not in self._numbers:
            self._numbers[key] = len(self.functions)
            self._named.setdefault(name, []).append(len(self.functions))
            self.functions.append(_described(name, place))
        return self._numbers[key]

    def named(self, name: str) -> list[int]:
        """The functions that stand for one of the kernel's: a patch's beside what it overrides."""
        return self._named.get(name, [])


def _described(name: str, place: PlaceLike) -> dict[str, Any]:
    function = function_at(place)
    try:
        lines, first = inspect.getsourcelines(function) if function is not None else ([], 0)
    except OSError:
        lines, first = [], 0
    return {
        "name": name,
        "model": place.function,
        "file": _short(place.file),
        "first": first,
        "source": inspect.cleandoc("\n" + "".join(lines)) if lines else "",
    }


def _short(file: str) -> str:
    """A file of the package from the package on, another one by its name alone."""
    path = Path(file).resolve()
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE.parent))
    return path.name
