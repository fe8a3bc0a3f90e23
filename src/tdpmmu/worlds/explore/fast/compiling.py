"""``@compiled``: numba's ``njit``, whose results are kept from one process to the next.

numba keeps what it compiled until the function's own file changes, but not if another file does
whose functions were compiled into it.  So the kept code is put into a directory that is named after
all of these files (:mod:`~tdpmmu.worlds.explore.fast.kept`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import njit

from tdpmmu.worlds.explore.fast.kept import DIRECTORY

config: Any = numba.config


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use; where nothing can be written, in every process anew.

    Other threads run meanwhile.  For functions that only use arrays which they are given:
    references are not counted, which would cost an addition and a look at the array's owner
    wherever one is taken out of a tuple.
    """
    return _compile(function, nogil=True, _nrt=False)


def allocating(function: Callable[..., Any]) -> Any:
    """The same, for functions that make arrays."""
    return _compile(function, nogil=True)


def inlined(function: Callable[..., Any]) -> Any:
    """The same, put in place wherever it is called."""
    return _compile(function, inline="always", _nrt=False)


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    before = config.CACHE_DIR
    config.CACHE_DIR = DIRECTORY
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no place for it
        return njit(**options)(function)
    finally:
        config.CACHE_DIR = before
