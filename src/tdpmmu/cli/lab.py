"""``tdpmmu lab``: real kernels under emulation."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.lab.boot import Recording
    from tdpmmu.lab.checks import Outcome

lab_app = typer.Typer(
    help="Boot real kernels, drive their KVM, check the traces.", rich_markup_mode=None
)

DEFAULT_STEPS = (
    "w x:1-8 w sleep:600 w x:1-8/2 r dlog+ getlog w:1-31/3 x:20 getlog w:1-31/3 getlog dlog- w "
    "sleep:600 dontneed:8-15 w:8-15 r"
)

KernelOption = Annotated[str, typer.Option(help="6.1 or 6.12: the newest Debian cloud kernel.")]
MmuOption = Annotated[
    str, typer.Option(help="tdp; legacy (NPT without the TDP MMU); shadow (no NPT).")
]
VcpusOption = Annotated[int, typer.Option(help="vCPUs of the VM, 1 to 8.")]
VmsOption = Annotated[int, typer.Option(help="Copies of the VM, all at once, 1 to 8.")]
BlocksOption = Annotated[int, typer.Option(help="Data blocks of 2M, 1 to 511.")]
BackingOption = Annotated[str, typer.Option(help="Memory behind the data: thp, 4k or hugetlb.")]
GuestOption = Annotated[
    str,
    typer.Option(
        help="flat (paging off), long (mode; default with shadow paging) or long-4k (4K pages)."
    ),
]


@lab_app.callback(invoke_without_command=True)
def _lab(context: typer.Context) -> None:
    """Boot real kernels, drive their KVM, check the traces."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@lab_app.command()
def steps() -> None:
    """Say what a list of steps is made of.

    Example: tdpmmu lab steps

    Exit code: 0.
    """
    from tdpmmu.lab.steps import describe

    print(describe())


@lab_app.command()
def run(
    kernel: KernelOption = "6.12",
    mmu: MmuOption = "tdp",
    vcpus: VcpusOption = 1,
    step_list: Annotated[
        str, typer.Option("--steps", help="What to do; tdpmmu lab steps explains.")
    ] = DEFAULT_STEPS,
    script: Annotated[
        str | None,
        typer.Option(help="In place of steps: threads of the scenario script, or a file of them."),
    ] = None,
    script_setup: Annotated[str, typer.Option(help="The script's setup.")] = "",
    fanout: Annotated[int, typer.Option(help="The script's entries in each page table.")] = 2,
    blocks: BlocksOption = 31,
    backing: BackingOption = "thp",
    guest: GuestOption = "",
    vms: VmsOption = 1,
    out: Annotated[
        Path | None, typer.Option("-o", help="Directory to leave everything in.")
    ] = None,
    package: Annotated[
        str | None, typer.Option(help="Another Debian kernel package than the newest.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds the guest may take.")] = 300,
    dat: Annotated[
        bool, typer.Option("--dat", help="Leave trace.dat, too (with this machine's trace-cmd).")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say what is wrong.")] = False,
) -> None:
    """Boot a kernel, do STEPS in a VM of its KVM, record that, and check the recording.

    Needs no virtualization of this machine: QEMU emulates it all.

    Example: tdpmmu lab run --kernel 6.12 --steps "w x:1-8 w r" -o run

    Exit codes: 0 all checks are good, 1 one is not, 2 bad usage or no recording.
    """
    from tdpmmu.lab.binaries import trace_cmd
    from tdpmmu.lab.boot import boot
    from tdpmmu.lab.checks import run_checks
    from tdpmmu.lab.errors import LabError
    from tdpmmu.lab.from_script import translate
    from tdpmmu.lab.initramfs import job
    from tdpmmu.lab.kernels import find_kernel
    from tdpmmu.lab.vm import VmSetup

    directory = out or Path(f"lab-{kernel}-{mmu}")
    started = time.monotonic()

    def heard(line: str) -> None:
        if not quiet:
            print(f"{time.monotonic() - started:6.1f} s  guest: {line}", flush=True)

    try:
        if script is not None:
            made = translate(_text(script), script_setup, fanout)
            step_list, vcpus = made.steps, max(vcpus, made.vcpus)
            heard(f"does {step_list}")
        setup = VmSetup(mmu, vcpus, blocks, backing, guest, vms)
        jobs = [job(setup, step_list)]
        found = find_kernel(kernel, package)
        heard(f"boots {found.package}")
        make_room(directory)
        extra = trace_cmd() if dat else None
        (recording,) = boot(found, jobs, directory, timeout, heard, extra)
    except LabError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from None
    outcomes = run_checks(recording)
    for line in report(recording, outcomes, quiet):
        print(line)
    if not all(outcome.good for outcome in outcomes):
        raise typer.Exit(1)


@lab_app.command()
def fuzz(
    kernel: KernelOption = "6.12",
    mmu: MmuOption = "tdp",
    count: Annotated[int, typer.Option(min=1, help="Step lists to make up.")] = 20,
    seed: Annotated[int, typer.Option(help="Other lists with another seed.")] = 0,
    vms: VmsOption = 1,
    per_boot: Annotated[
        int, typer.Option(min=1, max=100, help="Lists in each boot, each in a VM of its own.")
    ] = 20,
    no_shrink: Annotated[
        bool, typer.Option("--no-shrink", help="Keep, but do not shrink.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", help="Directory to leave divergences in.")
    ] = None,
    package: Annotated[
        str | None, typer.Option(help="Another Debian kernel package than the newest.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds a boot may take.")] = 300,
) -> None:
    """Make up step lists, run them on a real kernel, check each recording, shrink what is bad.

    List number N depends on the seed and on N only.

    Example: tdpmmu lab fuzz --kernel 6.1

    Exit codes: 0 all checks are good, 1 a divergence was kept, 2 bad usage or no recording.
    """
    from collections import Counter

    from tdpmmu.lab.errors import LabError
    from tdpmmu.lab.fuzz import Fuzzer
    from tdpmmu.lab.kernels import find_kernel
    from tdpmmu.lab.vm import VmSetup

    directory = out or Path(f"lab-fuzz-{kernel}-{mmu}")
    started = time.monotonic()
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    divergences = 0
    try:
        VmSetup(mmu, vms=vms)
        found = find_kernel(kernel, package)
        make_room(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "console.txt").touch()
        fuzzer = Fuzzer(found, directory, per_boot, timeout)
        for number, result in enumerate(fuzzer.fuzz(mmu, seed, count, not no_shrink, vms)):
            for outcome in result.outcomes:
                (good if outcome.good else bad)[outcome.check] += 1
            for outcome in result.bad:
                print(f"list {number}: {outcome.check}: {outcome.summary}")
            if result.bad:
                divergences += 1
                print(f"  {result.case.command(kernel)}\n  kept in {result.where}", flush=True)
            if (number + 1) % per_boot == 0 or number + 1 == count:
                passed = time.monotonic() - started
                print(f"{passed:6.1f} s  {number + 1} lists, {divergences} bad", flush=True)
    except LabError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from None
    for check in sorted({*good, *bad}):
        print(f"{check}: {good[check]} of {good[check] + bad[check]} good")
    if divergences:
        raise typer.Exit(1)


def _text(script: str) -> str:
    """A script, or the text of the file that it names; ``#`` begins a comment there."""
    if not Path(script).is_file():
        return script
    lines = Path(script).read_text("utf-8", "replace").splitlines()
    return "\n".join(line.partition("#")[0] for line in lines)


def make_room(directory: Path) -> None:
    """Empty a directory that an earlier run left; UsageError if it is anything else."""
    if directory.is_dir() and (directory / "console.txt").exists():
        shutil.rmtree(directory)
    elif directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UsageError(f"{directory}: is there, and not from an earlier run; expected -o NEW")


def report(recording: Recording, outcomes: list[Outcome], quiet: bool = False) -> list[str]:
    """A line for each check, and details of those that are not good."""
    lines = [] if quiet else [f"trace: {recording.trace}"]
    for outcome in outcomes:
        if not (quiet and outcome.good):
            lines.append(f"{outcome.check}: {'good' if outcome.good else 'BAD'}: {outcome.summary}")
        if not outcome.good:
            lines += [f"  {line}" for line in outcome.details[:20]]
            if len(outcome.details) > 20:
                lines.append(f"  and {len(outcome.details) - 20} more")
    return lines
