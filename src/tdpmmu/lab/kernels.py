"""Find a Debian kernel package, fetch it with apt, and keep of it what the lab boots."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tdpmmu.lab.errors import LabError, need

KERNELS = ("6.1", "6.12")
"""Kernels that Debian 12 and 13 have, and that the model has, too."""

MODULES = ("virtio_pci", "virtio_blk", "kvm", "kvm-amd")
"""What the guest loads; each comes with the modules that it depends on."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to boot: ``modules`` are in the order in which they have to be loaded."""

    version: str
    package: str
    vmlinuz: Path
    modules: tuple[Path, ...]
    fprobe_events: bool


def cache_dir() -> Path:
    """Where kernels are kept: ``$XDG_CACHE_HOME/tdpmmu/lab``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "tdpmmu" / "lab"


def find_kernel(version: str, package: str | None = None) -> Kernel:
    """The kernel of a release, from the cache or else from apt.

    ``package`` overrules the choice, which is the newest of Debian's cloud kernels.
    """
    if version not in KERNELS:
        raise LabError(f"kernel {version}: expected one of {', '.join(KERNELS)}")
    cached = cache_dir() / (package or version)
    if not (cached / "package").exists():
        fetch(version, package, cached)
    name = (cached / "package").read_text().strip()
    config = (cached / "config").read_text()
    modules = tuple(cached / line for line in (cached / "modules").read_text().split())
    return Kernel(
        version, name, cached / "vmlinuz", modules, "CONFIG_FPROBE_EVENTS=y" in config.split()
    )


def newest_package(version: str) -> str:
    """The newest cloud kernel of a release among the packages that apt knows."""
    names = _run([need("apt-cache", "apt"), "pkgnames", f"linux-image-{version}"]).split()
    pattern = rf"linux-image-{re.escape(version)}\.\d[\w.+~-]*cloud-amd64"
    found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:
        raise LabError(
            f"apt knows no package linux-image-{version}.*-cloud-amd64: "
            "run apt-get update (Debian 12 has 6.1 and 6.12, Debian 13 has 6.12)"
        )
    return max(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def fetch(version: str, package: str | None, to: Path) -> None:
    """Download a kernel package and put what is needed of it into ``to``, whole or not at all."""
    apt, dpkg = need("apt-get", "apt"), need("dpkg-deb", "dpkg")
    name = package or newest_package(version)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        _run([apt, "download", "-q", name], cwd=scratch)
        debs = list(Path(scratch).glob("*.deb"))
        if len(debs) != 1:
            raise LabError(f"apt-get download {name} left {len(debs)} packages, expected one")
        new = Path(scratch) / "kernel"
        new.mkdir()
        _unpack(dpkg, debs[0], new)
        (new / "package").write_text(debs[0].name.replace("%3a", ":") + "\n")
        try:
            new.rename(to)
        except OSError:
            if not (to / "package").exists():  # else somebody else was faster
                raise


def _unpack(dpkg: str, deb: Path, to: Path) -> None:
    """Pick kernel, configuration and modules out of a package."""
    from tdpmmu.lab.modules import decompress, depends

    files: dict[str, bytes] = {}
    command = [dpkg, "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            base = os.path.basename(member.name)
            stem = base.split(".ko")[0].replace("-", "_")
            content = tar.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            if base.startswith(("vmlinuz-", "config-")):
                (to / base.split("-")[0]).write_bytes(content.read())
            elif ".ko" in base and re.match(r"virtio|kvm|irqbypass|ccp$", stem):
                files[stem] = decompress(base, content.read())
    if not (to / "vmlinuz").exists() or "kvm" not in files:
        raise LabError(f"{deb.name}: expected a kernel with a module kvm in the package")
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in files:
            return  # what has no file is built in
        for other in depends(files[name]):
            add(other)
        order.append(name)

    for name in MODULES:
        add(name.replace("-", "_"))
    for name in order:
        (to / f"{name}.ko").write_bytes(files[name])
    (to / "modules").write_text("".join(f"{name}.ko\n" for name in order))


def _run(command: list[str], cwd: str | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("W:")]
        why = lines[-1] if lines else f"exit code {result.returncode}"
        raise LabError(f"{' '.join([os.path.basename(command[0]), *command[1:]])}: {why}")
    return result.stdout
