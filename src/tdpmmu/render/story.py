"""A run as a list of entries: what each thread does, in which of the kernel's functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.spte import SpteFormat
from tdpmmu.events.records import FlushCompleted, LockReleased, LockTaken, SpteChanged
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.words import LOCK, Phrase, Words

CALL = "call"
"""What a line is about that names functions."""


@dataclass(slots=True)
class Row:
    """Something worth a line; ``chain`` are the functions it happens in, outermost first."""

    number: int
    thread: int
    chain: tuple[str, ...]
    text: str
    about: str
    stem: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Nested calls that lines are shown below, as one heading; each is itself only."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line to show: its thread, how deep it stands, and the operation's number, if any."""

    thread: int
    depth: int
    text: str
    about: str
    number: int | None = None
    notes: tuple[str, ...] = ()


def story(
    records: Sequence[RecordLike],
    words: Words,
    names: KernelNames,
    hardware: Hardware,
    notes: Mapping[int, Sequence[str]],
) -> list[Entry]:
    """What is worth showing of a run, in the order of time; ``notes`` are by operation."""
    words.prepare(records)
    # Where there is a note, and at the end, something has to be said.
    keep = {*notes, *(record.number for record in records[-1:])}
    rows = _without_empty_sections(_rows(records, words, names, keep), keep)
    sections = _sections(records, hardware.format)
    for row in rows:
        if row.about == LOCK and row.number in sections:
            row.text += f": {sections[row.number]}"
    for thread in {row.thread for row in rows}:
        _find_calls([row for row in rows if row.thread == thread], 0)
    return list(_entries(rows, notes))


def numbered(entries: Sequence[Entry]) -> list[Entry]:
    """Every entry with a number: calls that of what comes next, the rest of what came before."""
    out: list[Entry] = []
    after = 0
    for entry in reversed(entries):
        if entry.number is not None:
            after = entry.number
        out.append(replace(entry, number=after) if entry.about == CALL else entry)
    before = 0
    for i, entry in enumerate(reversed(out)):
        if entry.about != CALL and entry.number is not None:
            before = entry.number
        elif entry.number is None:
            out[len(out) - 1 - i] = replace(entry, number=before)
    return out[::-1]


def _rows(
    records: Iterable[RecordLike], words: Words, names: KernelNames, keep: set[int]
) -> list[Row]:
    rows: list[Row] = []
    for record in records:
        phrases = words.phrases(record)
        if not phrases and record.number in keep:
            phrases = [Phrase(record.op.describe())]
        for phrase in phrases:
            chain = names.chain(record.place)
            last = rows[-1] if rows else None
            if (
                phrase.stem
                and last is not None
                and not keep & {last.number, record.number}
                and (last.thread, last.chain, last.stem) == (record.thread, chain, phrase.stem)
            ):
                last.text += f", {phrase.text.removeprefix(phrase.stem)}"
                continue
            rows.append(
                Row(record.number, record.thread, chain, phrase.text, phrase.about, phrase.stem)
            )
    return rows


def _without_empty_sections(rows: list[Row], keep: set[int]) -> list[Row]:
    """Drop the RCU and spinlock sections in which nothing happens that is worth a line.

    What happens in the same operation as the end of a section was waiting for it, so it counts.
    """
    kept: list[Row] = []
    for i, row in enumerate(rows):
        opening = kept[-1] if kept else None
        if (
            opening is not None
            and opening.thread == row.thread
            and row.text == _UNLOCK.get(opening.text.partition("(")[0], "") + _locked(opening)
            and (i + 1 == len(rows) or rows[i + 1].number != row.number)
            and not keep & {row.number, opening.number}
        ):
            kept.pop()
        else:
            kept.append(row)
    return kept


_UNLOCK = {
    "rcu_read_lock": "rcu_read_unlock",
    "srcu_read_lock": "srcu_read_unlock",
    "spin_lock": "spin_unlock",
}


def _locked(row: Row) -> str:
    """The lock in brackets at the end of a line, brackets included."""
    return "".join(row.text.partition("(")[1:])


def _sections(records: Iterable[RecordLike], fmt: SpteFormat) -> dict[int, str]:
    """What to say where ``mmu_lock`` is released: was anything taken away under it, and flushed?"""
    owed: dict[int, str] = {}
    found = {}
    for record in records:
        for event in record.events:
            if isinstance(event, LockTaken) and event.lock == "mmu_lock":
                owed.pop(record.thread, None)
            elif isinstance(event, SpteChanged) and _takes_away(fmt, event):
                what = "change" if fmt.is_shadow_present(event.new) else "zap"
                owed[record.thread] = f"no flush since the {what} in step {record.number}"
            elif isinstance(event, FlushCompleted) and record.thread in owed:
                owed[record.thread] = ""
            elif isinstance(event, LockReleased) and event.lock == "mmu_lock":
                last = owed.pop(record.thread, None)
                if last:
                    found[record.number] = last
                elif last is None and event.mode == "write":
                    found[record.number] = "nothing zapped, nothing flushed"
    return found


def _takes_away(fmt: SpteFormat, event: SpteChanged) -> bool:
    """Whether a translation of the old entry is no longer right."""
    old, new = event.old, event.new
    if not fmt.is_shadow_present(old):
        return False
    if not fmt.is_shadow_present(new) or fmt.pfn(old) != fmt.pfn(new):
        return True
    tests = (fmt.is_readable, fmt.is_writable, fmt.is_executable, fmt.is_accessed, fmt.is_dirty)
    return any(test(old) and not test(new) for test in tests)


def _find_calls(rows: list[Row], depth: int) -> None:
    """Give each row of a thread the calls that head it."""
    at = 0
    while at < len(rows):
        chain = rows[at].chain
        if len(chain) <= depth:
            at += 1
            continue
        end = at + 1
        while end < len(rows) and rows[end].chain[depth : depth + 1] == chain[depth : depth + 1]:
            end += 1
        inside = rows[at:end]
        # A function around a single line, as those that only write an SPTE, is not worth another.
        if not depth or len(inside) > 1 or len(chain) > depth + 1:
            names = chain[depth : _common(inside)]
            call = Call(names)
            for row in inside:
                row.calls += (call,)
            _find_calls(inside, depth + len(names))
        at = end


def _common(rows: Sequence[Row]) -> int:
    """How many functions all rows have in common, outermost first."""
    return next(
        (i for i, names in enumerate(zip(*(row.chain for row in rows), strict=False))
         if len(set(names)) > 1),
        min(len(row.chain) for row in rows),
    )  # fmt: skip


def _entries(rows: Sequence[Row], notes: Mapping[int, Sequence[str]]) -> Iterator[Entry]:
    open_calls: dict[int, tuple[Call, ...]] = {}
    running = None
    for i, row in enumerate(rows):
        known = open_calls.get(row.thread, ())
        if running != row.thread and known and row.calls and row.calls[-1] in known:
            inner = row.calls[-1]
            text = f"... {inner.names[-1]}"
            yield Entry(row.thread, len(row.calls) - 1, text, CALL)
        for depth, call in enumerate(row.calls):
            if call not in known:
                text = " -> ".join(call.names)
                yield Entry(row.thread, depth, f"-> {text}" if depth else text, CALL)
        open_calls[row.thread] = row.calls
        running = row.thread
        last = i + 1 == len(rows) or rows[i + 1].number != row.number
        said = tuple(notes.get(row.number, ())) if last else ()
        first = i == 0 or rows[i - 1].number != row.number
        number = row.number if first else None
        yield Entry(row.thread, len(row.calls), row.text, row.about, number, said)
