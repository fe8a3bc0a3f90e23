"""What the lab's guest boots into: busybox, modules, the driver, and what it is to do."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tdpmmu.lab.cpio import CpioWriter
from tdpmmu.lab.errors import LabError, need
from tdpmmu.lab.kernels import Kernel
from tdpmmu.lab.steps import driver_program, parse
from tdpmmu.lab.vm import NX_PARAMETERS, VmSetup
from tdpmmu.record import wanted

_OFFSETS = {
    "kvm": 0,
    "role": 36,
    "gfn": 40,
    "base_gfn": 176,
    "npages": 184,
    "userspace_addr": 248,
    "flags": 256,
    "as_id": 262,
    "start": 8,
    "end": 16,
}
"""Of the structures that probes look at, in Debian's 6.1, whose kprobes do not know them."""


@dataclass(frozen=True, slots=True)
class Job:
    """One VM's life: its setup, and the steps as the user and as the driver has them."""

    setup: VmSetup
    steps: str
    program: str


def job(setup: VmSetup, steps: str) -> Job:
    """A step list as a job; LabError if it makes no sense."""
    return Job(setup, steps, driver_program(parse(steps, setup)))


def build_driver(cache: Path) -> bytes:
    """The driver, compiled statically with gcc; kept in ``cache`` until its source changes."""
    source = files("tdpmmu.lab.guest").joinpath("driver.c").read_bytes()
    kept, kept_source = cache / "driver", cache / "driver.c"
    if kept.exists() and kept_source.exists() and kept_source.read_bytes() == source:
        return kept.read_bytes()
    gcc = need("gcc", "gcc libc6-dev")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        path, out = Path(scratch) / "driver.c", Path(scratch) / "driver"
        path.write_bytes(source)
        result = subprocess.run(
            [gcc, "-O2", "-static", "-pthread", "-o", str(out), str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            why = result.stderr.strip().splitlines() or ["no output"]
            raise LabError(f"gcc cannot build the driver (apt-get install gcc libc6-dev): {why[0]}")
        content = out.read_bytes()
        out.rename(kept)
        path.rename(kept_source)
    return content


def write_initramfs(
    to: Path,
    kernel: Kernel,
    jobs: list[Job],
    driver: bytes,
    extra: Mapping[str, bytes] | None = None,
    buffer_kb: int = 16384,
) -> None:
    """Write the archive; all jobs share the parameters that modules are loaded with.

    ``extra`` are more files for the guest, by their paths; one called ``lab/script`` is run by its
    shell before the jobs.
    """
    busybox = Path(need("busybox", "busybox-static"))
    loaded = jobs[0].setup.module_parameters()
    with to.open("wb") as out:
        archive = CpioWriter(out)
        archive.file("bin/busybox", busybox.read_bytes(), executable=True)
        archive.file("bin/driver", driver, executable=True)
        init = files("tdpmmu.lab.guest").joinpath("init.sh").read_bytes()
        archive.file("init", init, executable=True)
        listed = []
        for module in kernel.modules:
            archive.file(f"lab/modules/{module.name}", module.read_bytes())
            options = loaded.get(module.stem, {})
            listed.append(" ".join([module.stem, *(f"{k}={v}" for k, v in options.items())]))
        pages = max(job.setup.blocks * job.setup.vms for job in jobs) + 1
        hugetlb = any(job.setup.backing == "hugetlb" for job in jobs)
        for name, text in {
            "modules.list": _lines(listed),
            "parameters": _lines(f"{k} {v}" for k, v in NX_PARAMETERS.items()),
            "events": _lines(f"{one} {wanted.FILTERS.get(one, '')}" for one in wanted.EVENTS),
            "functions": _lines(_function_patterns()),
            "probes": _lines(_probes(kernel)),
            "buffer_kb": f"{buffer_kb}\n",
            "hugepages": f"{pages}\n" if hugetlb else "",
            **_job_files(jobs),
        }.items():
            archive.file(f"lab/{name}", text.encode())
        for name, content in (extra or {}).items():
            archive.file(name, content, executable=True)
        archive.close()


def _job_files(jobs: list[Job]) -> Mapping[str, str]:
    found = {}
    for number, job in enumerate(jobs):
        found[f"jobs/{number}/options"] = job.setup.driver_options() + "\n"
        found[f"jobs/{number}/program"] = job.program
        found[f"jobs/{number}/others"] = " ".join(map(str, range(1, job.setup.vms))) + "\n"
    return found


def _function_patterns() -> list[str]:
    """Lines of ``NUMBER FUNCTION``; compilers add suffixes to names."""
    return [rf"[0-9]+ {pattern}(\.[a-z0-9.]*)?" for pattern in wanted.FUNCTIONS]


def _probes(kernel: Kernel) -> list[str]:
    """Probes on the functions that the module has symbols of; after a bar, what to try instead.

    There is no BTF of functions that compilers have changed.
    """
    kvm = next(module for module in kernel.modules if module.stem == "kvm").read_bytes()
    there = [probe for probe in wanted.PROBES if f"\0{probe.function}\0".encode() in kvm]
    if kernel.fprobe_events:
        return [f"{wanted.fprobe(probe)}|{wanted.kprobe(probe, {})}" for probe in there]
    return [wanted.kprobe(probe, _OFFSETS) for probe in there]


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
