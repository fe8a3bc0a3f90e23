"""Damaged traces: none may crash ``trace verify`` or hang it; what breaks a rule must be noticed.

    python benchmarks/mutate_traces.py [--count 5000] [--seed 1]

Random damage (bytes flipped, lines cut short, entries dropped, times swapped, entries moved) is
done to the recorded traces in tests/data, of the long ones to their first entries.  A damaged trace
is refused with an error of one line, or verified; what comes of it is counted.

Targeted damage is done to the whole traces, wherever it is possible: a flush is dropped that is the
only one between a worker's zap and the free of the table; a table's free is moved before its flush,
and before its unlinking.  Which flushes are the only ones is found out from the text alone.  A free
before the unlinking cannot always be told: another table's free at the same address, used again,
passes for it.
"""

from __future__ import annotations

import argparse
import io
import lzma
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tdpmmu.trace.records import TraceError
from tdpmmu.trace.text import TraceReader
from tdpmmu.trace.verify.verifier import verify

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
TDP = ("6.1-tdp1", "6.12-tdp1")
MOST_LINES = 3000
UNSURE = "freed before its unlinking"
SECONDS = 20
"""A trace that takes longer hangs."""

Lines = list[bytes]


def lines_of(name: str) -> Lines:
    """A recorded trace without its header, which counts the entries."""
    text = lzma.decompress((TRACES / name / "trace.txt.xz").read_bytes())
    return [line for line in text.splitlines(keepends=True) if not line.startswith(b"#")]


# --- random damage --------------------------------------------------------------------------------


def flip(lines: Lines, rng: random.Random) -> None:
    """Bits in bytes that are not the ends of lines."""
    for _ in range(rng.choice((1, 1, 3, 20))):
        i = rng.randrange(len(lines))
        line = bytearray(lines[i])
        line[rng.randrange(len(line) - 1)] ^= 1 << rng.randrange(8)
        lines[i] = bytes(line)


def digit(lines: Lines, rng: random.Random) -> None:
    """A hexadecimal digit becomes another: the trace stays readable."""
    for _ in range(rng.choice((1, 3))):
        i = rng.randrange(len(lines))
        places = [m.start() for m in re.finditer(rb"(?<=[ =x0-9a-f])[0-9a-f]", lines[i][40:])]
        if places:
            at = 40 + rng.choice(places)
            lines[i] = (
                lines[i][:at]
                + rng.choice(b"0123456789abcdef".decode()).encode()
                + (lines[i][at + 1 :])
            )


def cut(lines: Lines, rng: random.Random) -> None:
    """A line ends too early."""
    i = rng.randrange(len(lines))
    lines[i] = lines[i][: rng.randrange(len(lines[i]))] + b"\n" * rng.randrange(2)


def drop(lines: Lines, rng: random.Random) -> None:
    """Entries are missing."""
    for _ in range(rng.choice((1, 1, 2, 30))):
        i = rng.randrange(len(lines))
        del lines[i : i + rng.choice((1, 1, 5))]


def swap_times(lines: Lines, rng: random.Random) -> None:
    """Two neighbours are in the wrong order, or two far from each other."""
    i = rng.randrange(len(lines) - 1)
    j = rng.choice((i + 1, rng.randrange(len(lines))))
    lines[i], lines[j] = lines[j], lines[i]


def move(lines: Lines, rng: random.Random) -> None:
    """A few entries come much earlier or later."""
    i = rng.randrange(len(lines))
    count = rng.randrange(1, 40)
    some = lines[i : i + count]
    del lines[i : i + count]
    at = rng.randrange(len(lines) + 1)
    lines[at:at] = some


def repeat(lines: Lines, rng: random.Random) -> None:
    """A few entries come twice."""
    i = rng.randrange(len(lines))
    lines[i:i] = lines[i : i + rng.randrange(1, 40)]


def lose(lines: Lines, rng: random.Random) -> None:
    """The buffer overran."""
    i = rng.randrange(len(lines))
    count = rng.randrange(1, 500)
    lines[i : i + count] = [b"CPU:%d [LOST %d EVENTS]\n" % (rng.randrange(2), count)]


def truncate(lines: Lines, rng: random.Random) -> None:
    """The beginning or the end is missing."""
    i = rng.randrange(len(lines))
    if rng.randrange(2):
        del lines[:i]
    else:
        del lines[i:]


DAMAGE: tuple[Callable[[Lines, random.Random], None], ...] = (
    flip,
    digit,
    cut,
    drop,
    swap_times,
    move,
    repeat,
    lose,
    truncate,
)


def hang(signum: int, frame: object) -> None:
    raise TimeoutError


def outcome(lines: Lines) -> str:
    """What verification says of a trace; an exception other than TraceError is a crash."""
    signal.alarm(SECONDS)
    try:
        result = verify(TraceReader(io.BytesIO(b"".join(lines)), "trace"))
    except TraceError as error:
        message = str(error)
        if "\n" in message or not message.startswith("trace: line "):
            raise AssertionError(f"not an error of one line: {message!r}") from None
        return "refused"
    finally:
        signal.alarm(0)
    if result.violations:
        return "violated"
    return "does not fit together" if result.problems else "holds"


def random_damage(count: int, seed: int) -> bool:
    """Print what came of ``count`` damaged traces; whether none crashed or hung."""
    bases = {path.name: lines_of(path.name)[:MOST_LINES] for path in sorted(TRACES.iterdir())}
    said: dict[str, Counter[str]] = {one.__name__: Counter() for one in DAMAGE}
    bad = 0
    start = time.process_time()
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = rng.choice(list(bases))
        lines = list(bases[name])
        damage = DAMAGE[i % len(DAMAGE)]
        damage(lines, rng)
        try:
            said[damage.__name__][outcome(lines)] += 1
        except TimeoutError:
            bad += 1
            print(f"trace {i} ({name}, {damage.__name__}): hangs")
        except Exception as error:
            bad += 1
            print(f"trace {i} ({name}, {damage.__name__}): {type(error).__name__}: {error}")
    columns = ("refused", "violated", "does not fit together", "holds")
    print(f"{'':<12}" + "".join(f"{one:>23}" for one in columns))
    for damage_name, counter in said.items():
        print(f"{damage_name:<12}" + "".join(f"{counter[one]:>23,}" for one in columns))
    seconds = time.process_time() - start
    print(f"{count:,} damaged traces, {bad} crashed or hung; {seconds:.0f} s of CPU")
    return not bad


# --- targeted damage ------------------------------------------------------------------------------


def pid_of(line: bytes) -> bytes:
    return line[:30].split(b"[")[0].rsplit(b"-", 1)[1].strip()


def worker_zaps(lines: Lines) -> Iterator[tuple[int, int, int]]:
    """Of each table that the worker zaps: where it does, the flush after, the free."""
    for i, line in enumerate(lines):
        zap = re.search(rb" zap_sp: .*? sp=0x([0-9a-f]+)", line)
        if zap is None:
            continue
        head = b"head=0x%x" % (int(zap[1], 16) + 0xA8)
        flush = next(k for k in range(i, len(lines)) if b" flush: " in lines[k])
        free = next((k for k in range(i, len(lines)) if head in lines[k]), None)
        if free is not None:
            yield i, flush, free


def without(lines: Lines, at: int) -> Lines:
    """Without a probe's entry and that of the function tracer for the same call."""
    pid = pid_of(lines[at])
    again = at + 1
    while pid_of(lines[again]) != pid:
        again += 1
    return [line for i, line in enumerate(lines) if i not in (at, again)]


def moved(lines: Lines, at: int, to: int) -> Lines:
    """With an entry moved to an earlier place."""
    return [*lines[:to], lines[at], *lines[to:at], *lines[at + 1 :]]


def targeted(name: str) -> bool:
    """Print how much of the damage is noticed; whether all is."""
    lines = lines_of(name)
    noticed: Counter[str] = Counter()
    tried: Counter[str] = Counter()

    def attempt(what: str, damaged: Lines, *wanted: str) -> None:
        result = verify(TraceReader(io.BytesIO(b"".join(damaged)), "trace"))
        tried[what] += 1
        noticed[what] += bool({one.prop for one in result.violations} & set(wanted))

    dropped: set[int] = set()
    for zap, flush, free in worker_zaps(lines):
        after = range(flush + 1, len(lines))
        later = next((k for k in after if b" flush: " in lines[k]), len(lines))
        if free < later and flush not in dropped:
            dropped.add(flush)
            attempt("the only flush dropped", without(lines, flush), "freed-table", "flush-owed")
        attempt("freed before its flush", moved(lines, free, flush), "freed-table")
        attempt(UNSURE, moved(lines, free, zap), "page-accounting")
    for what in tried:
        print(f"{name:<10} {what:<28} {noticed[what]:>3} of {tried[what]} noticed")
    sure = [what for what in tried if what != UNSURE]
    return all(noticed[what] == tried[what] for what in sure) and noticed[UNSURE] > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, hang)
    good = [targeted(name) for name in TDP]
    good.append(random_damage(arguments.count, arguments.seed))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
