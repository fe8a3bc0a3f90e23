"""What has to be known of a whole trace before its first event can be shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.fields import Probe, ProbeReturn, SpteChange
from tdpmmu.trace.records import Lost, Trace


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
        fields = record.fields
        if isinstance(fields, Probe):
            found.probed.add(fields.function)
        elif isinstance(fields, ProbeReturn):
            found.returning.add(fields.function)
        elif isinstance(fields, SpteChange) and not (seen and detector.done):
            seen = True
            if not detector.feed(fields):
                reader.fail(
                    f"expected SPTEs of one of the known formats and kernels; found level "
                    f"{fields.level}, {fields.old:#x} to {fields.new:#x} (--format and --kernel "
                    "overrule the detection)",
                    record.line,
                )
    if seen:
        found.format = detector.format
    return found
