"""The values in one event's bytes."""

from __future__ import annotations

from tdpmmu.trace.dat.cursor import ByteOrder
from tdpmmu.trace.dat.formats import Field, Format

Value = int | str | bytes


class EventValues:
    """``payload`` is the event's data, from the common fields on."""

    __slots__ = ("format", "order", "payload")

    def __init__(self, fmt: Format, payload: bytes, order: ByteOrder) -> None:
        self.format = fmt
        self.payload = payload
        self.order = order

    def raw(self, name: str) -> bytes:
        """The bytes of a field, wherever they are; KeyError if there is no such field."""
        field = self.format.fields[name]
        start, size = field.offset, field.size
        if field.dynamic:
            where = int.from_bytes(self.payload[start : start + size], self.order)
            end = start + size
            start, size = where & 0xFFFF, where >> 16
            if field.dynamic == "rel_loc":
                start += end
        elif field.array and not size:
            size = len(self.payload) - start
        return self.payload[start : start + size]

    def value(self, name: str) -> Value:
        """A number, a string, or the bytes of any other array."""
        field = self.format.fields[name]
        data = self.raw(name)
        if field.is_string:
            return text_of(data)
        return data if field.array else number_of(data, field, self.order)

    def number(self, name: str) -> int:
        """A field as a number."""
        return int.from_bytes(self.raw(name), self.order, signed=self.format.fields[name].signed)

    def items(self, name: str) -> list[int]:
        """The numbers in an array."""
        field = self.format.fields[name]
        data = self.raw(name)
        size = item_size(field)
        return [
            int.from_bytes(data[i : i + size], self.order, signed=field.signed)
            for i in range(0, len(data) - size + 1, size)
        ]


_SIZES = {"char": 1, "u8": 1, "bool": 1, "short": 2, "u16": 2, "int": 4, "u32": 4, "unsigned": 4}


def item_size(field: Field) -> int:
    """The size of an item of an array, in bytes."""
    return _SIZES.get(field.kind.split()[-1].lstrip("_"), 8) if "*" not in field.kind else 8


def number_of(data: bytes, field: Field, order: ByteOrder) -> int:
    """A number of the field's size."""
    return int.from_bytes(data, order, signed=field.signed)


def text_of(data: bytes) -> str:
    """A string that may end in a zero byte."""
    return data.partition(b"\0")[0].decode("utf-8", "replace")
