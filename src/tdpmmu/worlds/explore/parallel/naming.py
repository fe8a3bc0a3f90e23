"""Names for positions and values that are the same in every process.

A position's key is made of objects, of which each process has its own.  Its *digest* is made of
their names.  Values are pickled; objects which are what they are (cells, pools of pages, functions)
were there before the workers were, so their address serves.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import pickle
from enum import Enum
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    EllipsisType,
    FunctionType,
    MethodDescriptorType,
    ModuleType,
    NotImplementedType,
    WrapperDescriptorType,
)
from typing import Any

from tdpmmu.worlds.explore.liveness import CodeFacts
from tdpmmu.worlds.explore.position.functions import NAMESPACES
from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.visit import Mark

_PLAIN = frozenset({int, str, bytes, bool, float, type(None)})
_NAMED = (
    type,
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    ClassMethodDescriptorType,
)


class Names:
    """Digests of positions in one search."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Any, str]] = {}
        self._owners: dict[str, Any] = {}

    def digest(self, key: tuple[Any, ...]) -> bytes:
        """16 bytes that two positions share only if their keys say the same."""
        words: list[str] = []
        self._spell(key, words)
        return hashlib.blake2b("\0".join(words).encode(), digest_size=16).digest()

    def _spell(self, value: Any, words: list[str]) -> None:
        kind = type(value)
        if kind in _PLAIN:
            words.append(repr(value))
        elif kind is tuple:
            words.append(f"({len(value)}")
            # Code is followed by its globals: a number that is true in one process only.
            namespace = any(type(part) is CodeFacts for part in value[:2])
            for i, part in enumerate(value):
                if i == 2 and namespace:
                    words.append(str(NAMESPACES[part].get("__name__")))
                else:
                    self._spell(part, words)
        else:
            known = self._names.get(id(value))
            if known is None:
                known = self._names[id(value)] = (value, _name(value))
                if self._owners.setdefault(known[1], value) is not value:
                    raise UnsupportedPosition(
                        f"two different objects are called {known[1]!r}; search with one worker"
                    )
            words.append(known[1])


def _name(value: Any) -> str:
    if isinstance(value, CodeFacts):
        code = value.code
        text = hashlib.blake2b(code.co_code, digest_size=8).hexdigest()
        return f"code {code.co_filename} {code.co_qualname} {code.co_firstlineno} {text}"
    if isinstance(value, _NAMED):
        home = getattr(value, "__module__", None) or getattr(value, "__objclass__", None)
        return f"{type(value).__name__} {home}.{value.__qualname__}"
    if isinstance(value, Enum):
        return f"enum {type(value).__qualname__}.{value.name}"
    if isinstance(value, Mark):
        return f"mark {value.name}"
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, (EllipsisType, NotImplementedType)):
        return repr(value)
    raise UnsupportedPosition(
        f"a position holds a {type(value).__qualname__}, which has no name that another process "
        "knows; search with one worker"
    )


def _is_constant(kind: type) -> bool:
    """Whether objects of a class are what they are, and not what they hold."""
    if kind.__module__ == "builtins":
        return kind is FunctionType
    return hasattr(kind, "position_key") or all(
        "__eq__" not in base.__dict__ for base in kind.__mro__[:-1]
    )


class Constants(Names):
    """The objects that all workers have in common, made before they are."""

    def __init__(self) -> None:
        super().__init__()
        wanted: dict[type, bool] = {}
        self.known: dict[int, Any] = {}
        for one in gc.get_objects():
            kind = type(one)
            keep = wanted.get(kind)
            if keep is None:
                keep = wanted[kind] = _is_constant(kind)
            if keep:
                self.known[id(one)] = one

    def dumps(self, value: object) -> bytes:
        """Pickle a value."""
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._address  # type: ignore[method-assign]
        try:
            pickler.dump(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UnsupportedPosition(
                f"a value cannot be sent to another process: {error}; search with one worker"
            ) from None
        return stream.getvalue()

    def weight(self, chunk: int, value: object) -> int:
        """64 bits that are the same for equal values of a chunk, in all workers."""
        words = [str(chunk)]
        self._write(value, words)
        text = "\0".join(words).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def _write(self, value: Any, words: list[str]) -> None:
        """What equal values have in common: ``True`` equals ``1``, and sets have no order."""
        if isinstance(value, (bool, int)) and not isinstance(value, Enum):
            words.append(repr(int(value)))
        elif isinstance(value, (str, bytes)) or value is None:
            words.append(repr(value))
        elif self._address(value) is not None:
            words.append(f"at {id(value)}")
        elif isinstance(value, tuple):
            words.append(f"({len(value)}")
            for part in value:
                self._write(part, words)
        elif isinstance(value, frozenset):
            texts = []
            for part in value:
                inside: list[str] = []
                self._write(part, inside)
                texts.append("\1".join(inside))
            words.append(f"{{{len(value)}")
            words += sorted(texts)
        elif dataclasses.is_dataclass(value):
            words.append(type(value).__qualname__)
            for field in dataclasses.fields(value):
                if field.compare:
                    self._write(getattr(value, field.name), words)
        elif isinstance(value, Enum):
            words.append(f"{type(value).__qualname__}.{value.name}")
        else:
            raise UnsupportedPosition(
                f"a value holds a {type(value).__qualname__}, which another process cannot tell "
                "from others; search with one worker"
            )

    def loads(self, data: bytes) -> Any:
        """The value again, made of this process's objects."""
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = self.known.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def _address(self, value: object) -> int | None:
        return id(value) if id(value) in self.known and self.known[id(value)] is value else None
