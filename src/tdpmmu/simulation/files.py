"""Experiments as TOML: a guest, the host's knobs, what both do, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from tdpmmu.simulation.guest import LEVELS, MAX_UINT, MODES, Guest, Knobs, Migrate
from tdpmmu.simulation.toml_file import (
    FileError,
    Table,
    TomlFile,
    flag,
    number,
    one_of,
    text,
    whole,
)
from tdpmmu.simulation.units import parse_bytes, parse_duration, parse_ns
from tdpmmu.simulation.workloads.host import KINDS, LEAST, AnyHostWork, HostWork, MigrationWork
from tdpmmu.simulation.workloads.patterns import PATTERNS, REGION
from tdpmmu.simulation.workloads.phases import Phase, PhasedWorkload
from tdpmmu.simulation.workloads.published import (
    DisableDirtyLogging,
    NxHugePagesPerfTest,
    UdpPingPong,
)

WORKLOADS = ("phases", "nx-perf-test", "disable-dirty-logging", "udp-ping-pong")
PHASE = Phase()
MIGRATION = "migration"
USUAL_DOWNTIME_MS = 300
"""QEMU's ``downtime-limit``."""
AnyWorkload = PhasedWorkload | NxHugePagesPerfTest | DisableDirtyLogging | UdpPingPong


@dataclass(frozen=True)
class Experiment:
    """What a file describes."""

    name: str
    knobs: Knobs
    workload: AnyWorkload
    until_ns: int

    @property
    def guest(self) -> Guest:
        return self.workload.guest

    def of(self, guest: Guest) -> Experiment:
        """The same with another guest."""
        return replace(self, workload=replace(self.workload, guest=guest))

    def with_host(self, work: AnyHostWork) -> Experiment:
        """The same with more to do for the host.  ValueError for a published measurement."""
        if not isinstance(self.workload, PhasedWorkload):
            raise ValueError(f"{self.name}: its workload is a whole measurement; expected phases")
        host = (*self.workload.host, work)
        return replace(self, workload=replace(self.workload, host=host))


def presets() -> dict[str, str]:
    """The shipped experiments: name and first line of each."""
    found = {}
    for one in sorted(resources.files(__package__).joinpath("presets").iterdir(), key=str):
        if one.name.endswith(".toml"):
            first = one.read_text().splitlines()[0].lstrip("# ")
            found[one.name.removesuffix(".toml")] = first
    return found


def read_experiment(reference: str) -> Experiment:
    """The experiment of a file or of a preset.  FileError names file, line and key."""
    if reference in presets():
        shipped = resources.files(__package__).joinpath("presets", f"{reference}.toml")
        return _experiment(TomlFile(shipped.name, shipped.read_text()))
    if not Path(reference).exists() and "/" not in reference and "." not in reference:
        names = ", ".join(presets())
        raise FileError(f"{reference}: neither a file nor one of the presets {names}")
    return _experiment(TomlFile.read(reference))


def _experiment(file: TomlFile) -> Experiment:
    root = file.root()
    guest = _guest(root.table("guest"))
    knobs = _knobs(root.table("knobs"))
    host = tuple(_host(one, guest) for one in root.tables("host"))
    workload = _workload(root.table("workload"), guest, host)
    run = root.table("run")
    until = run.take("until", _duration, 60 * 10**9)
    run.finish()
    root.finish()
    return Experiment(file.name, knobs, workload, until)


def _size(value: Any) -> int:
    return parse_bytes(text(value))


def _time(value: Any) -> int:
    return parse_ns(text(value))


def _duration(value: Any) -> int:
    return parse_duration(text(value))


def _guest(table: Table) -> Guest:
    memory = table.take("memory", _size)
    vcpus = table.take("vcpus", whole(1, 4096), 1)
    backing = table.take("backing", one_of(*LEVELS), "2M")
    mapped = table.take("mapped", flag, True)
    present = table.take("host_present", flag, True)
    cpu = table.take("cpu", one_of("ept", "npt"), "ept")
    small = table.take("small", _size, 0)
    table.finish()
    try:
        return Guest(memory, vcpus, backing, mapped, present, cpu, small)
    except ValueError as error:
        key = "small" if str(error).startswith(("small", "what")) else "memory"
        raise table.error(str(error), key) from None


def _knobs(table: Table) -> Knobs:
    plain = Knobs()
    knobs = Knobs(
        nx_huge_pages=table.take("nx_huge_pages", flag, plain.nx_huge_pages),
        ratio=table.take("ratio", whole(0, MAX_UINT), plain.ratio),
        period_ms=table.take("period_ms", whole(0, MAX_UINT), plain.period_ms),
        preemption=table.take("preemption", flag, plain.preemption),
        eager_split=table.take("eager_split", flag, plain.eager_split),
        dirty_log=table.take("dirty_log", one_of(*MODES), plain.dirty_log),
        pml=table.take("pml", flag, plain.pml),
        host_cpus=table.take("host_cpus", whole(0, 8192), plain.host_cpus),
        tick_hz=table.take("tick_hz", whole(0, 10_000), plain.tick_hz),
        nodes=table.take("nodes", whole(0, 8), plain.nodes),
        noise=table.take("noise", flag, plain.noise),
    )
    near, far = (table.take(key, _time, 0) for key in ("near_wait", "far_wait"))
    table.finish()
    try:
        return replace(knobs, near_wait_ns=near, far_wait_ns=far)
    except ValueError as error:
        raise table.error(str(error)) from None


def _host(table: Table, guest: Guest) -> AnyHostWork:
    kind = table.take("event", one_of(*KINDS, MIGRATION))
    if kind == MIGRATION:
        return _migration(table)
    pages = LEAST.get(kind, REGION)
    work = HostWork(
        kind,
        at_ns=table.take("at", _time, 0),
        every_ns=table.take("every", _time, 10**9),
        times=table.take("times", whole(1), 1),
        pages=max(1, table.take("bytes", _size, pages << 12) >> 12),
    )
    table.finish()
    if work.pages > guest.pages:
        raise table.error("more than the guest has", "bytes")
    return work


def _migration(table: Table) -> MigrationWork:
    bandwidth = table.take("bandwidth", _size)
    at_ns = table.take("at", _time, 0)
    stop_below = table.take("stop_below", _size, bandwidth * USUAL_DOWNTIME_MS // 1000)
    passes = table.take("max_passes", whole(1), 30)
    table.finish()
    try:
        return MigrationWork(Migrate(bandwidth, stop_below, passes), at_ns)
    except ValueError as error:
        raise table.error(str(error), "bandwidth") from None


def _workload(table: Table, guest: Guest, host: tuple[AnyHostWork, ...]) -> AnyWorkload:
    kind = table.take("kind", one_of(*WORKLOADS), "phases")
    if host and kind != "phases":
        raise table.error(f"{kind!r} is a whole measurement: it has no [[host]] work", "kind")
    made: AnyWorkload
    if kind == "phases":
        phases = tuple(_phase(one) for one in table.tables("phase"))
        made = PhasedWorkload(guest, phases or (PHASE,), host)
    elif kind == "nx-perf-test":
        made = NxHugePagesPerfTest(
            guest,
            touch_ns=table.take("touch", _time, 40),
            code_ns=table.take("code", _time, 0),
            timed_ns=table.take("timed", _time, 40),
            rest_ns=table.take("rest", _time, 0),
        )
    elif kind == "disable-dirty-logging":
        off = table.take("off_at", _time)
        made = DisableDirtyLogging(guest, off, table.take("touch", _time, 40))
    else:
        made = UdpPingPong(
            guest,
            round_trip_ns=table.take("round_trip", _time, 66_000),
            pages=table.take("pages", whole(1), 2),
            executed=table.take("executed", number(0, 1), 1.0),
            executes=table.take("executes", number(0, 1), 0.25),
        )
    table.finish()
    return made


def _phase(table: Table) -> Phase:
    phase = Phase(
        duration_ns=table.take("for", _time, PHASE.duration_ns),
        pattern=table.take("pattern", one_of(*PATTERNS), PHASE.pattern),
        exponent=table.take("zipf", number(0.01, 10), PHASE.exponent),
        visits_per_s=table.take("visits_per_s", number(1e-3, 1e9), PHASE.visits_per_s),
        writes=table.take("writes", number(0, 1), PHASE.writes),
        executes=table.take("executes", number(0, 1), PHASE.executes),
        executed=table.take("executed", number(0, 1), PHASE.executed),
        drift=table.take("drift", number(0, 1e6), PHASE.drift),
    )
    table.finish()
    if phase.writes + phase.executes > 1:
        raise table.error("writes and executes are more than 1 together", "writes")
    return phase
