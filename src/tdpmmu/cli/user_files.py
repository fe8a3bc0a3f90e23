"""A user's own Python file: patches and scenarios."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tdpmmu.cli.errors import UsageError


def load(path: str) -> Any:
    """Run a user's file; one line names the file, the line and the problem if that fails."""
    from tdpmmu.scenarios.token import TokenError, load_module

    try:
        compile(Path(path).read_text(), path, "exec")
        return load_module(path)
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, TokenError) as error:
        raise UsageError(str(error)) from None


def _classes(path: str) -> list[type[Any]]:
    module = load(path)
    return [
        found
        for found in vars(module).values()
        if isinstance(found, type) and found.__module__ == module.__name__
    ]


def patches_in(path: str) -> list[type[Any]]:
    """The classes of a file that derive from a layer of the MMU."""
    from tdpmmu.mmu.flush import Flush

    return [cls for cls in _classes(path) if issubclass(cls, Flush)]


def scenarios_in(path: str) -> list[type[Any]]:
    """The dataclasses of a file that have a ``build`` method."""
    return [
        cls for cls in _classes(path) if dataclasses.is_dataclass(cls) and hasattr(cls, "build")
    ]


def the_one(what: str, path: str, name: str, found: list[type[Any]]) -> type[Any]:
    """The class that ``file.py`` or ``file.py:Class`` means."""
    if name:
        for cls in found:
            if cls.__name__ == name:
                return cls
        raise UsageError(f"{path}: no {what} class {name}")
    if not found:
        raise UsageError(f"{path}: no {what} in it")
    if len(found) > 1:
        names = ", ".join(cls.__name__ for cls in found)
        raise UsageError(f"{path}: more than one {what} ({names}); write {path}:CLASS")
    return found[0]


def split(reference: str) -> tuple[str, str]:
    """``file.py:Class`` as file and class; the class is empty if none is named."""
    path, colon, name = reference.rpartition(":")
    return (path, name) if colon and path.endswith(".py") else (reference, "")


def is_file(reference: str) -> bool:
    """Whether a name on the command line means a Python file."""
    return split(reference)[0].endswith(".py")
