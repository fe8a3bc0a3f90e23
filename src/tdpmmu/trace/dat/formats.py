"""The events' formats, as the file itself describes them (tracefs: events/SYSTEM/EVENT/format)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HEAD = re.compile(rb"name: (\S+)\s+ID: (\d{1,6})\b")
_FIELD = re.compile(
    r"field:\s*(?P<declaration>[^;]*);\s*offset:(?P<offset>\d{1,6});\s*size:(?P<size>\d{1,6});"
    r"(?:\s*signed:(?P<signed>[01]);)?"
)
_NAME = re.compile(r"(?P<type>.*?)\s*\b(?P<name>\w+)\s*(?P<array>\[[^\]]*\])?\s*$")


@dataclass(frozen=True, slots=True)
class Field:
    """``offset`` and ``size`` in bytes; ``kind`` is the C type, without an array's brackets.

    ``dynamic`` is ``data_loc`` or ``rel_loc`` if the field says where the value is, else "".
    """

    name: str
    kind: str
    offset: int
    size: int
    signed: bool
    array: bool
    dynamic: str

    @property
    def is_string(self) -> bool:
        """An array of char."""
        return self.array and self.kind.split()[-1:] == ["char"]


@dataclass(frozen=True, slots=True)
class Format:
    """One event: ``size`` is where its last field ends, ``print_fmt`` what formats it."""

    system: str
    name: str
    number: int
    fields: dict[str, Field]
    size: int
    print_fmt: str


def parse_fields(text: str) -> dict[str, Field]:
    """The fields of a format, or of ``header_page``."""
    fields = {}
    for match in _FIELD.finditer(text):
        name = _NAME.match(match["declaration"])
        if name is None:
            continue
        kind, array, dynamic = name["type"], name["array"] is not None, ""
        for word in ("data_loc", "rel_loc"):
            if kind.startswith(f"__{word}"):
                kind = kind.removeprefix(f"__{word}").strip().removesuffix("[]").strip()
                array, dynamic = True, word
        fields[name["name"]] = Field(
            name["name"],
            kind,
            int(match["offset"]),
            int(match["size"]),
            match["signed"] == "1",
            array,
            dynamic,
        )
    return fields


class Formats:
    """All formats of a file by the events' numbers; each is parsed when it is first needed."""

    def __init__(self, formats: Iterable[tuple[str, bytes]]) -> None:
        self._texts: dict[int, tuple[str, str, bytes]] = {}
        for system, text in formats:
            if head := _HEAD.match(text):
                self._texts[int(head[2])] = (system, head[1].decode("latin1"), text)

    def name(self, number: int) -> str | None:
        """The event's name; None if there is no such event."""
        known = self._texts.get(number)
        return known[1] if known else None

    def any_fields(self) -> dict[str, Field]:
        """The fields of some event: all have the same common ones."""
        for _, _, text in self._texts.values():
            return parse_fields(text.decode("latin1"))
        return {}

    def get(self, number: int) -> Format | None:
        """The format of an event; None if there is none."""
        known = self._texts.get(number)
        if known is None:
            return None
        system, name, data = known
        text = data.decode("utf-8", "replace")
        before, _, print_fmt = text.partition("\nprint fmt:")
        fields = parse_fields(before)
        size = max((one.offset + one.size for one in fields.values()), default=0)
        return Format(system, name, number, fields, size, print_fmt.strip())
