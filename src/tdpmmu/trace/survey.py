"""What has to be known of a whole trace before its first event can be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.fields import SpteChange, parse_fields, probed_function
from tdpmmu.trace.records import Lost, Record, Trace

RETURN = re.compile(r"\([\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])? <- ([\w.]+)\)(.*)")
"""The fields of a probe on a function's return."""


@dataclass(slots=True)
class Survey:
    """``format`` is None without a ``kvm_tdp_mmu_spte_changed``.

    ``probed`` are the functions with a probe on their entry, ``returning`` those with one on their
    return, too.
    """

    format: SpteFormat | None = None
    probed: set[str] = field(default_factory=set)
    returning: set[str] = field(default_factory=set)


def survey(reader: Trace, detector: Detector) -> Survey:
    """Read a whole trace; TraceError if it is broken, or its SPTEs are of no known format."""
    found = Survey()
    seen = False
    for record in reader:
        if isinstance(record, Lost):
            continue
        if record.text.startswith("("):
            _probe(record, found)
        elif record.event == "kvm_tdp_mmu_spte_changed" and not (seen and detector.done):
            seen = True
            change = parse_fields(record, reader)
            if isinstance(change, SpteChange) and not detector.feed(change):
                reader.fail(
                    f"expected SPTEs of one of the known formats and kernels; found level "
                    f"{change.level}, {change.old:#x} to {change.new:#x} (--format and --kernel "
                    "overrule the detection)",
                    record.line,
                )
    if seen:
        found.format = detector.format
    return found


def _probe(record: Record, found: Survey) -> None:
    entry = probed_function(record)
    if entry is not None:
        found.probed.add(entry[0])
    elif match := RETURN.match(record.text):
        found.returning.add(match[1])
