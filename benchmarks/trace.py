"""Events per second and peak memory of reading and verifying a trace.dat, beside trace-cmd's.

    python benchmarks/trace.py                       the recorded 6.12 run, 27 times over: 1 million
    python benchmarks/trace.py --times 270           10 million
    python benchmarks/trace.py FILE --times 1        a file as it is

A recorded file is made longer by writing its ring buffer pages again with later time stamps.  Every
measurement is a process of its own, and all are made in turn, --rounds times; shown is the best of
each.  Times are CPU time, so that what else runs counts little; "wall" is the best wall clock time.

    report   trace-cmd report -N FILE >/dev/null
    rows     every event with its typed fields, in the order of time
    runs     the same, many alike events of a thread as columns
    records  the same as rows, as objects
    verify   tdpmmu trace verify: reading and verifying
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDED = Path(__file__).parent.parent / "tests/data/traces/6.12-tdp1/trace.dat.xz"
MODES = ("report", "rows", "runs", "records", "verify")
SECOND = 10**9


def longer(source: bytes, times: int, out: Path) -> None:
    """Write a little-endian version 6 file with the events of ``source`` over and over."""
    import io

    from tdpmmu.trace.dat.files import read_container

    found = read_container(io.BytesIO(source), "source")
    first = found.cpus[0]
    table = source.index(struct.pack("<QQ", first.place, first.size))
    pages = [[page for _, _, page in found.pages(cpu)] for cpu in found.cpus]
    stamps = [struct.unpack_from("<Q", page)[0] for cpu in pages for page in cpu]
    period = max(stamps) - min(stamps) + SECOND
    place = first.place
    with out.open("wb") as file:
        header = bytearray(source[:place])
        for i, cpu in enumerate(pages):
            size = times * sum(map(len, cpu))
            struct.pack_into("<QQ", header, table + 16 * i, place, size)
            place += size
        file.write(header)
        for cpu in pages:
            for turn in range(times):
                for page in cpu:
                    (stamp,) = struct.unpack_from("<Q", page)
                    file.write(struct.pack("<Q", stamp + turn * period))
                    file.write(page[8:])


def child(mode: str, path: str) -> None:
    """One measurement, in a process of its own; prints the number of events."""
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.opening import open_trace

    with open_trace(path) as trace:
        if mode == "verify":
            from tdpmmu.trace.verify.verifier import verify

            verify(trace, Detector())
        else:
            stream = {"rows": trace.rows, "runs": trace.runs, "records": trace.events}[mode]
            for _ in stream():
                pass
        print(trace.records)


def measure(mode: str, path: Path) -> tuple[float, float, float, int]:
    """CPU seconds, wall seconds, peak MiB, events (0: not said)."""
    command = [sys.executable, __file__, "--child", mode, str(path)]
    if mode == "report":
        command = ["trace-cmd", "report", "-N", str(path)]
    began = time.monotonic()
    pipe = subprocess.DEVNULL if mode == "report" else subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe) as process:
        said = process.stdout.read() if process.stdout is not None else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    seconds = usage.ru_utime + usage.ru_stime
    return seconds, time.monotonic() - began, usage.ru_maxrss / 1024, int(said or 0)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", nargs="?", type=Path, default=RECORDED)
    parser.add_argument("--times", type=int, default=27, help="how often to repeat the events")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    modes = [mode for mode in arguments.modes if mode != "report" or shutil.which("trace-cmd")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.dat"
        data = arguments.file.read_bytes()
        data = lzma.decompress(data) if arguments.file.suffix == ".xz" else data
        if arguments.times == 1:
            path.write_bytes(data)
        else:
            longer(data, arguments.times, path)
        found = {mode: [measure(mode, path)] for mode in modes}
        for _ in range(arguments.rounds - 1):
            for mode in modes:
                found[mode].append(measure(mode, path))
        events = max(one[3] for all_of in found.values() for one in all_of)
        print(f"{events:,} events, {path.stat().st_size / 2**20:.0f} MiB")
    print("what      events/s   of report   CPU s   wall s     MiB")
    report = min((one[0] for one in found.get("report", ())), default=0.0)
    for mode in modes:
        seconds, wall, memory = (min(one[i] for one in found[mode]) for i in range(3))
        share = f"{report / seconds:10.2f}x" if report else " " * 11
        rate = f"{mode:8s} {events / seconds:>9,.0f}"
        print(f"{rate} {share} {seconds:>7.2f} {wall:>8.2f} {memory:>7.0f}")


if __name__ == "__main__":
    main()
