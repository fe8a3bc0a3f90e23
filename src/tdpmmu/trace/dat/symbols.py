"""Addresses and names of the kernel's functions: ``/proc/kallsyms``, as saved in the file."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable

_SYMBOL = re.compile(rb"^([0-9a-f]{1,16}) [tTwWrRdDbBvV] (\S+)(?:\s+\[([\w-]+)\])?", re.MULTILINE)


class Symbols:
    """Read when the first one is asked for."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read: Callable[[], bytes] | None = read
        self._addresses = array("Q")
        self._names: list[bytes] = []
        self._known: dict[int, str] = {}

    def name(self, address: int) -> str:
        """The function at, or around, ``address``; the address itself if there is none."""
        name = self._known.get(address)
        if name is None:
            index = self._index(address)
            name = f"{address:#x}" if index < 0 else self._name(index)[0]
            self._known[address] = name
        return name

    def place(self, address: int) -> str:
        """As ``%pS`` prints it: ``function+0x4/0xd0 [module]``."""
        index = self._index(address)
        if index < 0:
            return f"{address:#x}"
        start = self._addresses[index]
        after = bisect_right(self._addresses, start)
        size = self._addresses[after] - start if after < len(self._addresses) else 0
        name, module = self._name(index)
        return f"{name}+{address - start:#x}/{size:#x}{module}"

    def _name(self, index: int) -> tuple[str, str]:
        name, _, module = self._names[index].partition(b"\t")
        return name.decode("latin1"), f" [{module.decode('latin1')}]" if module else ""

    def _index(self, address: int) -> int:
        if self._read is not None:
            self._load(self._read())
            self._read = None
        after = bisect_right(self._addresses, address)
        return bisect_left(self._addresses, self._addresses[after - 1]) if after else -1

    def _load(self, text: bytes) -> None:
        found = [
            (int(address, 16), name + b"\t" + module if module else name)
            for address, name, module in _SYMBOL.findall(text)
        ]
        found.sort(key=lambda one: one[0])
        if found and found[-1][0]:  # all zero: the kernel did not tell
            self._addresses = array("Q", (one[0] for one in found))
            self._names = [one[1] for one in found]
