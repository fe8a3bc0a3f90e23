"""Boot jobs under QEMU and collect what they leave."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tdpmmu.lab.errors import LabError, need
from tdpmmu.lab.initramfs import Job, build_driver, write_initramfs
from tdpmmu.lab.kernels import Kernel, cache_dir

_DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Recording:
    """What is left of a job: ``trace`` is tracefs text, ``prog`` the driver's log."""

    directory: Path
    kernel: Kernel
    job: Job

    @property
    def trace(self) -> Path:
        """The text of tracefs's file ``trace``."""
        return self.directory / "trace.txt"

    @property
    def prog(self) -> Path:
        """The driver's log: steps, and the VM's statistics after each."""
        return self.directory / "prog.txt"


def qemu_command(kernel: Kernel, initrd: Path, disk: Path, megabytes: int) -> list[str]:
    """An AMD machine with nested paging, wholly emulated.

    One thread emulates all CPUs: they interleave, but never run at once; with one thread for each,
    guests of 6.12 with two vCPUs at times reset.
    """
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    append = (
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off tsc=reliable "
        "nokaslr random.trust_cpu=on cryptomgr.notests audit=0"
    )
    return [
        *(qemu, "-accel", "tcg,thread=single", "-machine", "q35", "-cpu", "EPYC,+svm,+npt"),
        *("-smp", "2", "-m", f"{megabytes}M", "-nographic", "-no-reboot", "-nodefaults"),
        *("-serial", "stdio", "-kernel", str(kernel.vmlinuz), "-initrd", str(initrd)),
        *("-append", append),
        *("-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"),
    ]


def boot(
    kernel: Kernel,
    jobs: list[Job],
    out: Path,
    timeout: float,
    heard: Callable[[str], None] = lambda line: None,
    extra: Mapping[str, bytes] | None = None,
) -> list[Recording]:
    """Run jobs in one boot, each with a VM and a trace of its own, in ``out/0``, ``out/1``, ...

    ``heard`` gets the guest's lines on its progress; ``extra`` are more files for the guest, as for
    :func:`tdpmmu.lab.initramfs.write_initramfs`.  LabError if the guest did not come to its end
    within ``timeout`` seconds; its console is in ``out/console.txt`` then, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    driver = build_driver(cache_dir())
    megabytes = 768 + 2 * max(job.setup.blocks * job.setup.vms for job in jobs) + 16 * len(jobs)
    with tempfile.TemporaryDirectory(prefix="tdpmmu-lab-") as scratch:
        initrd, disk = Path(scratch) / "initrd", Path(scratch) / "disk"
        write_initramfs(initrd, kernel, jobs, driver, extra)
        with disk.open("wb") as made:
            made.truncate(_DISK_BYTES)
        console = out / "console.txt"
        _run(qemu_command(kernel, initrd, disk, megabytes), console, timeout, heard)
        try:
            with tarfile.open(disk) as tar:
                _extract(tar, out)
        except tarfile.TarError:
            lines = console.read_text("utf-8", "replace").strip().splitlines() or ["nothing"]
            raise LabError(
                f"the guest left nothing; its last words in {console}: {lines[-1]}"
            ) from None
    recordings = [Recording(out / str(number), kernel, job) for number, job in enumerate(jobs)]
    for one in recordings:
        (one.directory / "steps.txt").write_text(one.job.steps + "\n")
        status = one.directory / "status"
        said = status.read_text().strip() if status.exists() else "not run"
        if said != "exit status 0":
            last = one.prog.read_text("utf-8", "replace").strip() if one.prog.exists() else ""
            raise LabError(f"{one.prog}: the driver ended badly ({said}): {last.splitlines()[-1:]}")
    return recordings


def _extract(tar: tarfile.TarFile, out: Path) -> None:
    """The files of an archive.  (``extractall`` has safe filters only from Python 3.11.4 on.)"""
    for member in tar:
        name = Path(member.name)
        content = tar.extractfile(member) if member.isfile() else None
        if content is not None and not name.is_absolute() and ".." not in name.parts:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with (out / name).open("wb") as copy:
                shutil.copyfileobj(content, copy)


def _run(command: list[str], console: Path, timeout: float, heard: Callable[[str], None]) -> None:
    with (
        console.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if line.startswith("LAB "):
                    heard(line[4:].strip())
        except BaseException:
            process.kill()
            raise
        finally:
            late = not timer.is_alive()
            timer.cancel()
    if late:
        raise LabError(f"the guest was not done after {timeout:.0f} s; see {console}")
