"""Functions, what they captured, and other names of code as parts of a key."""

from __future__ import annotations

from collections.abc import Hashable
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final

from tdpmmu.worlds.explore.liveness import facts_of
from tdpmmu.worlds.explore.position.refusal import Unencodable
from tdpmmu.worlds.explore.position.values import encode_tagged
from tdpmmu.worlds.explore.position.visit import UNBOUND, Encoder, Visit


def _function(value: FunctionType, visit: Visit) -> Hashable:
    """A module's function is a constant; one made inside a function is its code and captures."""
    code = value.__code__
    if "<locals>" not in code.co_qualname:
        return (FunctionType, value)
    again = visit.again(value)
    if again is not None:
        return again
    facts = facts_of(code)
    name = facts.rebinds
    if name is not None:
        raise Unencodable(
            f"a function that rebinds the captured variable {name!r}; return the value instead"
        )
    if value.__dict__:
        raise Unencodable("a nested function with attributes; use a class with position_fields")
    return (
        FunctionType,
        facts,
        namespace_id(value.__globals__),
        visit.encode(value.__defaults__),
        visit.encode(value.__kwdefaults__),
        *[encode_cell(cell, visit) for cell in value.__closure__ or ()],
    )


def encode_cell(value: CellType, visit: Visit) -> Hashable:
    """What is captured."""
    again = visit.again(value)
    if again is not None:
        return again
    try:
        content = value.cell_contents
    except ValueError:
        return (CellType, UNBOUND)
    return (CellType, visit.encode(content))


def _method(value: MethodType, visit: Visit) -> Hashable:
    return (MethodType, visit.encode(value.__func__), visit.encode(value.__self__))


def _builtin(value: BuiltinFunctionType, visit: Visit) -> Hashable:
    owner = value.__self__
    if owner is None or isinstance(owner, ModuleType):
        return (BuiltinFunctionType, value)
    return (BuiltinFunctionType, value.__name__, visit.encode(owner))


NAMESPACES: Final[dict[int, dict[str, Any]]] = {}
"""The globals of code that was met, by their ids."""


def namespace_id(namespace: dict[str, Any]) -> int:
    """Which module code runs in (kept alive, so that the id stays true)."""
    NAMESPACES.setdefault(id(namespace), namespace)
    return id(namespace)


CALLABLE: Final = frozenset(
    {
        FunctionType,
        MethodType,
        BuiltinFunctionType,
        MethodDescriptorType,
        WrapperDescriptorType,
        ClassMethodDescriptorType,
    }
)

FUNCTIONS: Final[dict[type, Encoder]] = {
    type: encode_tagged,
    ModuleType: encode_tagged,
    FunctionType: _function,
    MethodType: _method,
    BuiltinFunctionType: _builtin,
    MethodDescriptorType: encode_tagged,
    WrapperDescriptorType: encode_tagged,
    ClassMethodDescriptorType: encode_tagged,
}
