"""TOML files whose mistakes are answered with file, line, key and the nearest valid key."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_MISSING: Any = object()
_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_\-]+|\"[^\"]*\"|'[^']*')\s*=")
_AT_LINE = re.compile(r"(.*) \(at line (\d+), column \d+\)")


class FileError(ValueError):
    """Something is wrong with a file; the message is one line: ``file:line: what``."""


class Table:
    """One table of a file.  Each key is taken once; what nobody took is a mistake."""

    def __init__(self, file: TomlFile, path: tuple[str | int, ...], values: dict[str, Any]) -> None:
        self._file = file
        self._path = path
        self._values = values
        self._known: list[str] = []

    @property
    def name(self) -> str:
        """``[guest]``, or how the file as a whole is called."""
        names = [str(one) for one in self._path if isinstance(one, str)]
        return f"[{'.'.join(names)}]" if names else "the file"

    def has(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, read: Callable[[Any], T], default: T = _MISSING) -> T:
        """The value of ``key`` as ``read`` understands it; ``read`` raises ValueError if not."""
        self._known.append(key)
        if key not in self._values:
            if default is _MISSING:
                raise self._missing(key)
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            raise self.error(f"key {key!r}: {error}", key) from None

    def table(self, key: str) -> Table:
        """A table inside this one; empty if the file has none."""
        self._known.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"key {key!r}: expected a table [{key}]", key)
        return Table(self._file, (*self._path, key), value)

    def tables(self, key: str) -> list[Table]:
        """The tables of an array of tables ``[[key]]``."""
        self._known.append(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(f"key {key!r}: expected tables [[{key}]]", key)
        return [Table(self._file, (*self._path, key, at), one) for at, one in enumerate(value)]

    def _missing(self, key: str) -> FileError:
        for misspelt in difflib.get_close_matches(key, self._values, n=1, cutoff=0.5):
            what = f"key {misspelt!r} unknown in {self.name}; did you mean {key!r}?"
            return self.error(what, misspelt)
        return self.error(f"key {key!r} missing in {self.name}")

    def finish(self) -> None:
        """Refuse the first key that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else _one_of(self._known)
                raise self.error(f"key {key!r} unknown in {self.name}; {hint}", key)

    def error(self, what: str, key: str | None = None) -> FileError:
        """An error at the line of ``key``, or of the table."""
        path = self._path if key is None else (*self._path, key)
        return FileError(f"{self._file.name}:{self._file.line(path)}: {what}")


class TomlFile:
    """A parsed file that knows on which line each key stands."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        try:
            self._values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _AT_LINE.fullmatch(str(error))
            what, line = (found[1], found[2]) if found else (str(error), "1")
            raise FileError(f"{name}:{line}: not TOML: {what}") from None
        self._lines = _lines_of_keys(text)

    @classmethod
    def read(cls, path: str | Path) -> TomlFile:
        """FileError if it cannot be read or is not TOML."""
        try:
            return cls(str(path), Path(path).read_text())
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}; expected a TOML file") from None
        except UnicodeDecodeError:
            raise FileError(f"{path}: not text; expected a TOML file") from None

    def root(self) -> Table:
        return Table(self, (), self._values)

    def line(self, path: tuple[str | int, ...]) -> int:
        """The line where ``path`` is set, or the nearest one above it that is known."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def _lines_of_keys(text: str) -> dict[tuple[str | int, ...], int]:
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    at: tuple[str | int, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        key = _KEY.match(line)
        if header:
            name = header[2]
            parts = tuple(one.strip().strip("\"'") for one in name.split("."))
            at = parts
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                at = (*parts, counts[name])
            lines.setdefault(at, number)
        elif key:
            lines.setdefault((*at, key[1].strip("\"'")), number)
    return lines


def _one_of(keys: list[str]) -> str:
    return f"expected one of {', '.join(keys)}" if keys else "expected no keys here"


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, not {value!r}")
    return value


def whole(minimum: int = 0, maximum: int | None = None) -> Callable[[Any], int]:
    """A whole number within bounds."""

    def read(value: Any) -> int:
        wrong = isinstance(value, bool) or not isinstance(value, int) or value < minimum
        if wrong or (maximum is not None and value > maximum):
            upper = "" if maximum is None else f" to {maximum}"
            raise ValueError(f"expected a whole number from {minimum}{upper}, not {value!r}")
        return int(value)

    return read


def number(minimum: float = 0.0, maximum: float | None = None) -> Callable[[Any], float]:
    """A number within bounds."""

    def read(value: Any) -> float:
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        wrong = wrong or not math.isfinite(value) or value < minimum
        if wrong or (maximum is not None and value > maximum):
            upper = "" if maximum is None else f" to {maximum:g}"
            raise ValueError(f"expected a number from {minimum:g}{upper}, not {value!r}")
        return float(value)

    return read


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")
    return value


def one_of(*choices: str) -> Callable[[Any], str]:
    """One of some words; the nearest is named."""

    def read(value: Any) -> str:
        if value in choices:
            return str(value)
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected one of {', '.join(choices)}, not {value!r}{hint}")

    return read
