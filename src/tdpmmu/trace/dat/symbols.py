"""Addresses and names of the kernel's functions: ``/proc/kallsyms``, as saved in the file."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable

_DIGITS = 16


class Symbols:
    """Read when the first one is asked for."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read: Callable[[], bytes] | None = read
        self._addresses = array("Q")
        self._lines: list[bytes] = []
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
        words = self._lines[index].decode("latin1").split()
        return words[2] if len(words) > 2 else "?", f" {words[3]}" if len(words) > 3 else ""

    def _index(self, address: int) -> int:
        if self._read is not None:
            self._load(self._read())
            self._read = None
        after = bisect_right(self._addresses, address)
        return bisect_left(self._addresses, self._addresses[after - 1]) if after else -1

    def _load(self, text: bytes) -> None:
        """Symbols by address; those of one address stay in their order."""
        lines = text.splitlines()
        width = lines[0].find(b" ") if lines else 0
        digits = b"".join([line[:width].rjust(_DIGITS, b"0") for line in lines])
        try:
            addresses = array("Q", bytes.fromhex(digits.decode("latin1")))
        except ValueError:
            return  # no symbols, but something else
        if len(addresses) != len(lines):
            return
        if sys.byteorder == "little":
            addresses.byteswap()
        order = sorted(range(len(lines)), key=addresses.__getitem__)
        if order and addresses[order[-1]]:  # all zero: the kernel did not tell
            self._addresses = array("Q", [addresses[i] for i in order])
            self._lines = [lines[i] for i in order]
