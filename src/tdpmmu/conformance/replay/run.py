"""From a trace file to a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tdpmmu.arch.spte import spte_format
from tdpmmu.conformance.replay.replay import Replay
from tdpmmu.conformance.replay.result import Result, count
from tdpmmu.conformance.replay.threads import Threads
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.fields import PageInfo, SpteChange, parse_fields
from tdpmmu.trace.owners import Owned, find_owners
from tdpmmu.trace.records import Lost, Record, Trace, TraceError
from tdpmmu.versions.registry import apply, kernel_class

_ROOT = 4
"""The least level of roots of 64-bit guests."""


def only(records: list[Record | Lost]) -> Iterator[Record]:
    """Without what was lost."""
    return (record for record in records if isinstance(record, Record))


def _shadows(record: Record, reader: Trace) -> bool:
    """Whether it is of a root that shadows a table of the guest's."""
    if record.event != "kvm_mmu_get_page":
        return False
    page = parse_fields(record, reader)
    return isinstance(page, PageInfo) and page.level >= _ROOT and not page.direct


def replay_trace(
    reader: Trace,
    *,
    format_name: str | None = None,
    kernel: str | None = None,
    patches: tuple[type[Any], ...] = (),
    recovery_ratio: int = 1,
) -> Result:
    """Hold the model against a trace; format and kernel are found out unless they are given.

    TraceError if the trace is broken or has no TDP MMU in it, ValueError for unknown names.
    """
    shadow = format_name == "shadow"
    detector = Detector(None if shadow else format_name, kernel)
    records = list(reader)
    seen = False
    for record in records:
        if isinstance(record, Record) and record.event == "kvm_tdp_mmu_spte_changed":
            seen = True
            change = parse_fields(record, reader)
            if isinstance(change, SpteChange) and not detector.feed(change):
                reader.fail(
                    f"expected SPTEs of one of the known formats and kernels; found level "
                    f"{change.level}, {change.old:#x} to {change.new:#x} (--format and --kernel "
                    "overrule the detection)",
                    record.line,
                )
            if detector.done:
                break
    if not seen and not any(record.event == "kvm_mmu_set_spte" for record in only(records)):
        raise TraceError(
            f"{reader.name}: line {reader.line}: the trace ends without a "
            "kvm_tdp_mmu_spte_changed or kvm_mmu_set_spte; expected one of them (are they enabled?)"
        )
    cls = kernel_class(kernel or detector.format.kernel)
    paging = not seen and any(_shadows(record, reader) for record in only(records))
    shadow = shadow or (not seen and paging and format_name is None)
    fmt = spte_format("shadow" if shadow else detector.format.name, cls.spte_kernel)
    result = Result(reader.name, cls.version, fmt.name, detected=kernel is None and seen)
    if not seen and not (kernel and format_name):
        count(result.inferred, "format and kernel, which SPTEs of shadow pages do not tell")
    owned = _owned(records, reader)
    patched = apply(cls, *patches)

    def replay(records: list[Record | Lost], into: Result) -> None:
        found = Threads(reader, fmt, legacy=not seen)
        found.feed(records)
        for lost in found.lost:
            into.doubts.append((lost.line, f"CPU {lost.cpu} lost events here"))
        Replay(found, fmt, patched, into, recovery_ratio).run()

    if not owned.vms:
        replay(records, result)
    for vm, its in owned.vms.items():
        part = Result(str(vm), cls.version, fmt.name)
        replay(its, part)
        result.add(part)
    result.ambiguous = len(owned.ambiguous)
    return result


def _owned(records: list[Record | Lost], reader: Trace) -> Owned:
    """The records of each VM; TraceError if there are several that nothing tells apart."""
    owned = find_owners(records)
    if owned.mixed is not None:
        vcpu, one, other = owned.mixed
        raise TraceError(
            f"{reader.name}: line {other.line}: ambiguous: vCPU {vcpu} runs in {one.task}-{one.pid}"
            f" and in {other.task}-{other.pid}, so there are several VMs; expected what tells whose"
            " each SPTE is: probes with kvm pointers (tdpmmu record sets them) or processes (trace"
            " option record-tgid)"
        )
    return owned
