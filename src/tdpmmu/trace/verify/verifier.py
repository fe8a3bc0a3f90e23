"""Go through a trace once and hold it against every rule that its events allow."""

from __future__ import annotations

from collections.abc import Iterator

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.detect import FAMILY_NAMES, Detector
from tdpmmu.trace.records import Row, Run, Trace
from tdpmmu.trace.verify.findings import Result
from tdpmmu.trace.verify.follow import CHANGED, Follower

MAX_HELD = 1 << 16
"""How many records to keep for the detection of the format before settling for the likeliest."""


def verify(reader: Trace, detector: Detector | None = None) -> Result:
    """Read a whole trace; TraceError if it is broken.  ``detector``: what is known beforehand."""
    detector = detector or Detector()
    rows = reader.runs()
    held, fmt = _detect(reader, rows, detector)
    kernel = detector.format.kernel
    result = Result(
        reader.name,
        detector.format.name if fmt is not None else "no TDP MMU",
        kernel if detector.kernel_given else FAMILY_NAMES[kernel] if fmt else "not known",
    )
    follower = Follower(reader, detector.format)
    follower.run(held)
    held.clear()
    follower.run(rows)
    follower.finish(result)
    return result


def _detect(
    reader: Trace, rows: Iterator[Row | Run], detector: Detector
) -> tuple[list[Row | Run], SpteFormat | None]:
    """Read on until the format is known; what was read, and the format if there is a TDP MMU."""
    held: list[Row | Run] = []
    seen = False
    for item in rows:
        held.append(item)
        for row in item.rows() if isinstance(item, Run) else (item,):
            if row[4] != CHANGED or detector.done:
                seen = seen or row[4] == CHANGED
                continue
            seen = True
            change = row[5]
            if not detector.feed(change):
                reader.fail(
                    f"expected SPTEs of one of the known formats and kernels; found level "
                    f"{change.level}, {change.old:#x} to {change.new:#x} (--format and --kernel "
                    "overrule the detection)",
                    row[0],
                )
        if (seen and detector.done) or len(held) >= MAX_HELD:
            break
    return held, detector.format if seen else None
