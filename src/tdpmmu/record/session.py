"""A recording's instance and probes: set up, and taken away again, its own and those left behind.

Both are named by the process that they belong to, with the time at which it started: a name whose
process is gone was left by a SIGKILL, and whoever records next removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tdpmmu.record import wanted
from tdpmmu.record.btf import offsets
from tdpmmu.record.errors import RecordError
from tdpmmu.record.tracefs import Tracefs

_NAME = re.compile(rf"{wanted.GROUP}_(\d+)_(\d+)")


def process_name(pid: int) -> str | None:
    """What the instance and the probes of a process are called; None if there is no such one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    started = stat.rpartition(")")[2].split()[19]
    return f"{wanted.GROUP}_{pid}_{started}"


def remove_left_behind(root: Tracefs) -> list[str]:
    """Remove instances and probes of processes that are gone; their names."""
    probes = _dynamic_events(root)
    names = [*(root.names("instances") if root.exists("instances") else []), *probes]
    gone = []
    for name in dict.fromkeys(names):
        match = _NAME.fullmatch(name)
        if match and process_name(int(match[1])) != name:
            take_away(root, name)
            gone.append(name)
    return gone


def take_away(root: Tracefs, name: str) -> None:
    """Remove an instance, then its probes, which it would hold."""
    root.remove(name)
    for event in _dynamic_events(root).get(name, ()):
        root.append("dynamic_events", f"-:{name}/{event}\n")


def _dynamic_events(root: Tracefs) -> dict[str, list[str]]:
    """Dynamic events by their groups."""
    found: dict[str, list[str]] = {}
    if root.exists("dynamic_events"):
        for group, event in re.findall(
            r"^\w+:([^/\s]+)/(\S+)", root.read("dynamic_events"), re.MULTILINE
        ):
            found.setdefault(group, []).append(event)
    return found


@dataclass(slots=True)
class Session:
    """What is recorded: ``missing`` are events and probes that this kernel does not have."""

    root: Tracefs
    name: str
    instance: Tracefs
    missing: list[str] = field(default_factory=list)
    functions: int = 0
    probes: int = 0

    def close(self) -> None:
        """Leave nothing behind."""
        take_away(self.root, self.name)


def open_session(root: Tracefs, buffer_kb: int, functions: bool, btf: Path) -> Session:
    """Set up an instance, not yet recording; RecordError if that cannot be, and nothing is left.

    ``btf`` is the directory of the kernel's type information, ``/sys/kernel/btf``.
    """
    if not root.exists("events"):
        root.names("events")  # says why
    if not root.exists("events/kvmmmu"):
        raise RecordError(
            f"{root.path}/events: no kvmmmu there; expected a kernel with KVM's module kvm loaded "
            "(modprobe kvm_amd, or kvm_intel)"
        )
    name = process_name(os.getpid()) or f"{wanted.GROUP}_{os.getpid()}_0"
    session = Session(root, name, root.make(name))
    try:
        instance = session.instance
        instance.write("tracing_on", "0")
        instance.write("buffer_size_kb", str(buffer_kb))
        instance.write("trace_clock", "mono")
        if instance.exists("options/record-tgid"):
            instance.write("options/record-tgid", "1")
        _enable_events(session)
        _make_probes(session, btf)
        if functions:
            _trace_functions(session)
    except BaseException:
        session.close()
        raise
    return session


def _enable_events(session: Session) -> None:
    for event in wanted.EVENTS:
        if session.instance.exists(f"events/{event}/enable"):
            if event in wanted.FILTERS:
                session.instance.write(f"events/{event}/filter", wanted.FILTERS[event])
            session.instance.write(f"events/{event}/enable", "1")
        else:
            session.missing.append(f"event {event}")


def _make_probes(session: Session, btf: Path) -> None:
    """Each probe as fprobe, or else as kprobe, where the kernel takes either."""
    known: dict[str, int] | None = None
    for probe in wanted.PROBES:
        try:
            _add(session, wanted.fprobe(probe))
        except RecordError:
            if known is None:
                known = _offsets(btf)
            try:
                _add(session, wanted.kprobe(probe, known))
            except RecordError:
                session.missing.append(f"probe {probe.event} on {probe.function}")
                continue
        session.probes += 1
    if session.probes:
        session.instance.write(f"events/{session.name}/enable", "1")


def _add(session: Session, definition: str) -> None:
    """Make a dynamic event in the session's own group."""
    head, _, rest = definition.partition(f":{wanted.GROUP}/")
    session.root.append("dynamic_events", f"{head}:{session.name}/{rest}\n")


def _offsets(btf: Path) -> dict[str, int]:
    """Members of structures; none without BTF."""
    with contextlib.suppress(OSError, ValueError):
        base, module = btf / "vmlinux", btf / "kvm"
        split = module if module.exists() else base
        return offsets(base.read_bytes(), split.read_bytes(), wanted.MEMBERS)
    return {}


def _trace_functions(session: Session) -> None:
    """Trace the functions that are there, chosen by number.

    A name makes the kernel look at every function that it has.  Never without a filter: that would
    trace everything.
    """
    pattern = re.compile(rf"(?:{'|'.join(wanted.FUNCTIONS)})(?:\.[a-z0-9.]*)?(?: \[kvm\])?")
    try:
        lines = session.root.read("available_filter_functions").splitlines()
    except RecordError:
        lines = []  # a kernel without the function tracer
    chosen = [number for number, line in enumerate(lines, 1) if pattern.fullmatch(line)]
    if not chosen or not session.instance.exists("set_ftrace_filter"):
        session.missing.append("function lines")
        return
    session.instance.write("set_ftrace_filter", " ".join(map(str, chosen)) + "\n")
    traced = session.instance.read("set_ftrace_filter").splitlines()
    if len(traced) != len(chosen) or not all(map(pattern.fullmatch, traced)):
        raise RecordError("the list of functions changed meanwhile: a module was loaded; try again")
    session.instance.write("current_tracer", "function")
    session.functions = len(chosen)
