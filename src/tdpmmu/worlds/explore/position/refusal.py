"""What is said where a position cannot be told from a key."""

from __future__ import annotations

from types import CoroutineType
from typing import Any, Final

ADVICE: Final = (
    "use an int, str, tuple, frozen dataclass, or a class with position_fields or position_key()"
)


class UnsupportedPosition(Exception):
    """A thread stands where its future cannot be told from a key.  One line says where and why."""


class Unencodable(Exception):
    """A value that is not understood; the text completes "... holds"."""


def unsupported(coro: CoroutineType[Any, Any, Any], what: str) -> UnsupportedPosition:
    """The refusal of where a coroutine stands."""
    code, frame = coro.cr_code, coro.cr_frame
    line = code.co_firstlineno if frame is None else frame.f_lineno
    return UnsupportedPosition(f"{code.co_filename}:{line}: {code.co_qualname} {what}")
