"""Offsets of structure members from BTF, the type information that kernels carry.

A module's BTF (``/sys/kernel/btf/kvm``) is *split*: its types and strings are numbered on from
those of ``vmlinux``.  Format: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes after a type's three words: INT, ARRAY, VAR, DECL_TAG; others have none, or so many
for each member."""
_FOR_EACH = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64."""


@dataclass(frozen=True, slots=True)
class _Type:
    kind: int
    name: int
    members: bytes
    bitfields: bool


def offsets(base: bytes, split: bytes, wanted: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The offsets in bytes of members, by their names; ``wanted`` are (structure, member).

    ``base`` is ``vmlinux``'s, ``split`` the module's; for what is built in, both are ``vmlinux``'s.
    What is not there is left out; ValueError if the data is not BTF.
    """
    _, base_strings = _sections(base)
    types, strings = _sections(split)
    if split == base:
        strings = b""
    members: dict[str, set[str]] = {}
    for name, member in wanted:
        members.setdefault(name, set()).add(member)

    def text(offset: int) -> str:
        where = base_strings if offset < len(base_strings) else strings
        start = offset if where is base_strings else offset - len(base_strings)
        return where[start : where.index(b"\0", start)].decode("ascii", "replace")

    found: dict[str, int] = {}
    for one in _types(types):
        if one.kind != _STRUCT or not one.members or text(one.name) not in members:
            continue
        names = members[text(one.name)]
        for name, _, bits in struct.iter_unpack("<III", one.members):
            place = bits & 0xFFFFFF if one.bitfields else bits
            if text(name) in names and not (one.bitfields and bits >> 24):
                found[text(name)] = place // 8
    return found


def _sections(data: bytes) -> tuple[bytes, bytes]:
    """Types and strings."""
    if len(data) < _HEADER.size:
        raise ValueError("too short for BTF")
    magic, _, _, header, type_at, type_size, string_at, string_size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError(f"no BTF: it begins with {magic:#06x}, expected {_MAGIC:#06x}")
    types = data[header + type_at : header + type_at + type_size]
    strings = data[header + string_at : header + string_at + string_size]
    if len(types) != type_size or len(strings) != string_size:
        raise ValueError("BTF ends too early")
    return types, strings


def _types(data: bytes) -> Iterator[_Type]:
    at = 0
    while at < len(data):
        name, info, _ = struct.unpack_from("<III", data, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        size = _FIXED.get(kind, 0) + _FOR_EACH.get(kind, 0) * count
        members = data[at + 12 : at + 12 + size]
        if len(members) != size:
            raise ValueError("BTF ends too early")
        yield _Type(kind, name, members, bool(info >> 31))
        at += 12 + size
