"""Write a ``trace.dat`` of either version: to cut recorded ones short, and to make up others."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MAGIC = b"\x17\x08\x44tracing"
HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    "\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n"
)
COMMON = (
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
)


def event_format(name: str, number: int, fields: str, print_fmt: str) -> bytes:
    """The format file of an event; ``fields`` are lines ``declaration;offset;size;signed``."""
    lines = ""
    for line in fields.split("\n"):
        declaration, offset, size, signed = line.split(";")
        lines += f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
    return (
        f"name: {name}\nID: {number}\nformat:\n{COMMON}{lines}\nprint fmt: {print_fmt}\n".encode()
    )


@dataclass
class DatFile:
    """What goes into a file; ``cpus`` are the pages of each CPU, one after the other."""

    formats: list[tuple[str, bytes]]
    cpus: list[bytes]
    header_page: str = HEADER_PAGE
    kallsyms: bytes = b""
    printk: bytes = b""
    cmdlines: bytes = b""
    options: list[tuple[int, bytes]] = field(default_factory=list)
    page_size: int = 4096
    endian: str = "<"
    clock: bytes = b"mono"

    def pack(self, form: str, *values: int) -> bytes:
        """Numbers in the file's byte order."""
        return struct.pack(self.endian + form, *values)

    def _start(self, version: bytes) -> bytes:
        order = b"\x01" if self.endian == ">" else b"\x00"
        return MAGIC + version + b"\0" + order + b"\x08" + self.pack("I", self.page_size)

    def _headers(self) -> bytes:
        page = self.header_page.encode()
        parts = (b"header_page\0", self.pack("Q", len(page)), page)
        return b"".join((*parts, b"header_event\0", self.pack("Q", 0)))

    def _formats(self) -> tuple[bytes, bytes]:
        systems: dict[str, list[bytes]] = {"ftrace": []}
        for system, text in self.formats:
            systems.setdefault(system, []).append(text)
        ftrace = self._format_list(systems.pop("ftrace"))
        rest = self.pack("I", len(systems))
        for system, texts in systems.items():
            rest += system.encode() + b"\0" + self._format_list(texts)
        return ftrace, rest

    def _format_list(self, texts: list[bytes]) -> bytes:
        return self.pack("I", len(texts)) + b"".join(self.pack("Q", len(t)) + t for t in texts)

    def version_6(self) -> bytes:
        """The file as trace-cmd wrote it up to 2.9."""
        ftrace, events = self._formats()
        data = self._start(b"6") + self._headers() + ftrace + events
        data += self.pack("I", len(self.kallsyms)) + self.kallsyms
        data += self.pack("I", len(self.printk)) + self.printk
        data += self.pack("Q", len(self.cmdlines)) + self.cmdlines
        data += self.pack("I", len(self.cpus)) + b"options  \0"
        for number, content in [*self.options, (4, b"[" + self.clock + b"]\0")]:
            data += self.pack("HI", number, len(content)) + content
        data += self.pack("H", 0) + b"flyrecord\0"
        place = _aligned(len(data) + 16 * len(self.cpus), self.page_size)
        rest = b""
        for pages in self.cpus:
            data += self.pack("QQ", place + len(rest), len(pages))
            rest += pages
        return data.ljust(place, b"\0") + rest

    def version_7(
        self, compression: str = "none", compress: Callable[[bytes], bytes] | None = None
    ) -> bytes:
        """The file as trace-cmd writes it since 3.0."""
        if compression == "zlib":
            compress = zlib.compress
        data = self._start(b"7") + compression.encode() + b"\0" + b"1\0"
        hole = len(data)
        data += bytes(8)
        ftrace, events = self._formats()
        options = list(self.options)
        kallsyms = self.pack("I", len(self.kallsyms)) + self.kallsyms
        printk = self.pack("I", len(self.printk)) + self.printk
        cmdlines = self.pack("Q", len(self.cmdlines)) + self.cmdlines
        contents = (self._headers(), ftrace, events, kallsyms, printk, cmdlines)
        for number, content in zip(range(16, 22), contents, strict=True):
            options.append((number, self.pack("Q", len(data))))
            data += self._section(number, content, compress)
        options.append((3, self.pack("Q", len(data)) + b"\0" + self.clock + b"\0"))
        flags = 0 if compress is None else 1
        data += self.pack("HHIQ", 3, flags, 0, 0)
        where = self.pack("II", self.page_size, len(self.cpus))
        for cpu, pages in enumerate(self.cpus):
            data = data.ljust(_aligned(len(data), self.page_size), b"\0")
            content = pages if compress is None else self._chunks(pages, compress)
            where += self.pack("IQQ", cpu, len(data), len(content) if pages else 0)
            data += content
        options[-1] = (3, options[-1][1] + where)
        place = len(data)
        content = b""
        for number, option in [*options, (0, self.pack("Q", 0))]:
            content += self.pack("HI", number, len(option)) + option
        data += self._section(0, content, compress)
        return data[:hole] + self.pack("Q", place) + data[hole + 8 :]

    def _section(
        self, number: int, content: bytes, compress: Callable[[bytes], bytes] | None
    ) -> bytes:
        flags = 0
        if compress is not None:
            packed = compress(content)
            content = self.pack("II", len(packed), len(content)) + packed
            flags = 1
        return self.pack("HHIQ", number, flags, 0, len(content)) + content

    def _chunks(self, pages: bytes, compress: Callable[[bytes], bytes]) -> bytes:
        size = 10 * self.page_size
        chunks = [pages[i : i + size] for i in range(0, len(pages), size)]
        data = self.pack("I", len(chunks))
        for chunk in chunks:
            packed = compress(chunk)
            data += self.pack("II", len(packed), len(chunk)) + packed
        return data


def _aligned(place: int, size: int) -> int:
    return (place + size - 1) // size * size


def ring_page(
    time: int,
    entries: Iterable[tuple[int, bytes]],
    *,
    endian: str = "<",
    size: int = 4096,
    flags: int = 0,
    after: bytes = b"",
) -> bytes:
    """A page of the ring buffer from (time since the one before, payload) of each entry."""
    data = b""
    for delta, payload in entries:
        payload = payload.ljust(_aligned(len(payload), 4), b"\0")
        if delta >> 27:
            data += _word(endian, 30, delta & (1 << 27) - 1) + struct.pack(
                endian + "I", delta >> 27
            )
            delta = 0
        if len(payload) <= 112:
            data += _word(endian, len(payload) // 4, delta)
        else:
            data += _word(endian, 0, delta) + struct.pack(endian + "I", len(payload) + 4)
        data += payload
    header = struct.pack(endian + "QQ", time, len(data) | flags)
    return (header + data + after).ljust(size, b"\0")


def _word(endian: str, kind: int, delta: int) -> bytes:
    word = kind | delta << 5 if endian == "<" else kind << 27 | delta
    return struct.pack(endian + "I", word)
