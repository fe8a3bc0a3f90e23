"""Compiled functions as plain Python again, which takes no compiling; one can be changed."""

from __future__ import annotations

import faulthandler
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from tdpmmu.worlds.explore.fast import intrinsics
from tdpmmu.worlds.explore.fast.control import LINE

Function = Callable[..., Any]


def _swap(array: Any, at: int, old: int, new: int) -> bool:
    if array[at] != old:
        return False
    array[at] = new
    return True


def _store_word(array: Any, at: int, word: int) -> None:
    array[at : at + 8] = np.frombuffer(np.uint64(word).tobytes(), np.uint8)


def _alike(slots: Any, first: int, kept: int, wanted: int) -> int:
    line = slots[first : first + LINE] & np.uint32(kept & 0xFFFFFFFF)
    same = line == np.uint32(wanted & 0xFFFFFFFF)
    return sum(1 << i for i in range(LINE) if same[i])


INSTEAD: dict[Any, Function] = {
    intrinsics.prefetch: lambda array, at: None,
    intrinsics.load_word: lambda array, at: array[at : at + 8].view(np.uint64)[0],
    intrinsics.store_word: _store_word,
    intrinsics.claim: lambda array, at, value: _swap(array, at, 0, value),
    intrinsics.swap: _swap,
    intrinsics.alike: _alike,
    intrinsics.lowest: lambda bits: (int(bits) & -int(bits)).bit_length() - 1,
    intrinsics.look: lambda array, at: array[at],
    intrinsics.tell: lambda array, at, value: array.__setitem__(at, value),
}
"""What the intrinsics do, where nobody comes in between."""


class Plainly:
    """Compiled functions of one moment, in Python.

    ``change``: a compiled function with a piece of its source replaced.
    """

    def __init__(self, change: tuple[Any, str, str] | None = None) -> None:
        self._changed, self._old, self._new = change or (None, "", "")
        self._names: dict[str, dict[str, Any]] = {}
        if change is not None:
            self._source(self._changed.py_func)

    def __call__(self, function: Any) -> Function:
        """The function, and with it all that it calls."""
        plain = function.py_func
        found: Function = self._module(sys.modules[plain.__module__])[plain.__name__]
        return found

    def _module(self, module: ModuleType) -> dict[str, Any]:
        if module.__name__ not in self._names:
            names = self._names[module.__name__] = dict(vars(module))
            for name, value in vars(module).items():
                plain = getattr(value, "py_func", None)
                if plain is None:
                    names[name] = self._intrinsic(value)
                elif plain.__module__ != module.__name__:
                    names[name] = self(value)
                elif value is self._changed:
                    exec(self._source(plain), names)
                else:
                    names[name] = FunctionType(plain.__code__, names, name)
        return self._names[module.__name__]

    @staticmethod
    def _intrinsic(value: Any) -> Any:
        return next((mine for one, mine in INSTEAD.items() if one is value), value)

    def _source(self, plain: Function) -> Any:
        source = textwrap.dedent(inspect.getsource(plain))
        source = source[source.index("def ") :]
        assert source.count(self._old) == 1, f"{plain.__name__} does not say {self._old!r} once"
        return compile(source.replace(self._old, self._new), f"<{plain.__name__} changed>", "exec")


def noticed(run: Callable[[], object]) -> bool:
    """Whether a run fails, in a process of its own: what is changed may have it write anywhere."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        code = 1
        try:
            run()
            code = 2
        except (AssertionError, LookupError):
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code <= 0
