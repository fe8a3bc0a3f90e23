"""What the kernel calls a function of the model, read from the function's own docstring."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

from tdpmmu.render.record import PlaceLike

_QUOTED = re.compile(r"``([A-Za-z_]\w*)(?:\([^`]*\))?``")
_PACKAGE = "tdpmmu."
_OUTSIDE = tuple(f"{_PACKAGE}{room}." for room in ("arch", "machine", "scenarios", "worlds"))
"""Rooms whose functions no kernel has."""

_LOCKING = f"{_PACKAGE}kernel."
_YIELDING = "cond_resched"


def kernel_name(function: FunctionType, overrides: Iterable[FunctionType] = ()) -> str | None:
    """The kernel's name for ``function``; None if its text gives none.

    It is a name in double back quotes which ends with the function's own, or starts the docstring.
    Where the function's docstring has none, those of the methods that it ``overrides`` are asked,
    nearest first, and then the docstrings of their modules.
    """
    own = function.__name__.strip("_")
    parameters = set(function.__code__.co_varnames[: function.__code__.co_argcount])
    asked = [function, *overrides]
    for doc in (one.__doc__ or "" for one in asked):
        names = [name for name in _QUOTED.findall(doc) if name not in parameters]
        ending = [name for name in names if name.endswith(own)]
        if ending:
            return str(ending[0])
        if names and doc.lstrip().startswith(f"``{names[0]}"):
            return str(names[0])
    modules = (sys.modules.get(one.__module__) for one in asked)
    quoted = (name for one in modules if one for name in _QUOTED.findall(one.__doc__ or ""))
    return next((str(name) for name in quoted if name.endswith(own)), None)


class KernelNames:
    """The kernel's names for the places where threads stand.

    Methods that ``mmu_class`` overrides without a docstring take the name from what they override.
    """

    def __init__(self, mmu_class: type[Any] = object) -> None:
        self._mmu_class = mmu_class
        self._known: dict[tuple[str, str], str | None] = {}

    def chain(self, place: Iterable[PlaceLike]) -> tuple[str, ...]:
        """The functions of the kernel that are being called, outermost first."""
        names = (self.name(one) for one in place)
        return tuple(name for name in names if name is not None)

    def name(self, place: PlaceLike) -> str | None:
        """The kernel's name for one place; None for what the kernel does not have."""
        key = (place.file, place.function)
        if key not in self._known:
            self._known[key] = self._find(place)
        return self._known[key]

    def _find(self, place: PlaceLike) -> str | None:
        module = _module(place.file)
        function = function_at(place)
        if module is None or function is None or module.__name__.startswith(_OUTSIDE):
            return None
        own = function.__name__
        if module.__name__.startswith(_LOCKING) and not own.startswith(_YIELDING):
            return None  # the operation itself says it
        methods = (vars(cls).get(own) for cls in self._mmu_class.__mro__)
        return kernel_name(function, [one for one in methods if isinstance(one, FunctionType)])


def function_at(place: PlaceLike) -> FunctionType | None:
    """The function of the model that a place is in; None if it is defined inside another one."""
    function: Any = _module(place.file)
    for part in place.function.split("."):
        function = getattr(function, part, None)
    return function if isinstance(function, FunctionType) else None


@lru_cache(maxsize=256)
def _module(file: str) -> ModuleType | None:
    return next(
        (one for one in list(sys.modules.values()) if getattr(one, "__file__", None) == file), None
    )
