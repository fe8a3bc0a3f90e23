"""Kernels with one thing taken away, by name, so that a token can build them again."""

from __future__ import annotations

from typing import Any


def removal(name: str) -> type[Any] | None:
    """The patch that ``KIND@SITE`` names, if the name is of that form."""
    return None
