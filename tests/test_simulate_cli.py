"""``tdpmmu simulate``: tables, pictures, files, and what is wrong with a command line."""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from unittest import mock

import pytest

from tdpmmu.cli.entry import main

SMALL = ("--memory", "32M", "--vcpus", "2", "--until", "250ms", "--period-ms", "100")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def tdpmmu(*arguments):
    """The command line, in this process."""
    out, err = StringIO(), StringIO()
    code = 0
    argv = ["tdpmmu", "simulate", *arguments]
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One sweep with all that it can write."""
    folder = tmp_path_factory.mktemp("sweep")
    done = tdpmmu(
        "nx-recovery",
        *SMALL,
        *("--ratio", "0,2", "--json", "--workers", "2"),
        *("--plot", str(folder / "a.png"), "--plot", str(folder / "a.svg")),
        *("--parquet", str(folder / "a.parquet")),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_every_combination_is_run_in_order(swept):
    results, _ = swept
    shown = [(one["kernel"], one["knobs"]["ratio"]) for one in results]
    assert shown == [("6.12", 0), ("6.12", 2), ("6.18", 0), ("6.18", 2)]
    recovered = [one["figures"]["recovered"] for one in results]
    assert recovered[0] == recovered[2] == 0
    assert recovered[1] > 0


def test_the_read_lock_series_shows_in_the_holds(swept):
    """Recovery holds mmu_lock for write on 6.12, and for read on 6.18."""
    results, _ = swept
    longest = {}
    for one in results:
        for hold in one["lock_holds"]:
            if (hold["lock"], hold["kind"]) == ("mmu_lock", "recovery"):
                longest[one["kernel"], one["knobs"]["ratio"], hold["mode"]] = hold["max"]
    assert longest["6.12", 2, "write"] > 1000
    assert longest["6.18", 2, "read"] > 1000
    assert longest.get(("6.18", 2, "write"), 0) < 500
    assert not any(ratio == 0 for _, ratio, _ in longest)


def test_the_number_of_workers_changes_nothing(swept):
    results, _ = swept
    alone = tdpmmu("nx-recovery", *SMALL, "--ratio", "0,2", "--json", "--workers", "1")
    assert json.loads(alone.stdout) == results


def test_pictures(swept):
    _, folder = swept
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "a.svg").read_text()
    assert "6.18 ratio 2 period 100 ms" in svg or "<svg" in svg


def test_the_parquet_table_has_the_same_figures(swept):
    pq = pytest.importorskip("pyarrow.parquet")
    results, folder = swept
    table = pq.read_table(folder / "a.parquet").to_pylist()
    for one in results:
        mine = [
            row
            for row in table
            if row["kernel"] == one["kernel"] and row["ratio"] == one["knobs"]["ratio"]
        ]
        faults = sum(row["value"] for row in mine if row["series"] == "fault_latency")
        assert faults == one["figures"]["faults"]
        stalls = {row["key"]: row["value"] for row in mine if row["series"] == "stall"}
        assert stalls == one["stall_ns"]
        huge = [row for row in mine if row["series"] == "coverage" and row["key"] == "huge"]
        assert [[row["at_ns"], row["value"]] for row in huge] == [
            [at, size] for at, size, _ in one["coverage"]
        ]


def test_the_table_for_a_terminal():
    done = tdpmmu("nx-recovery", *SMALL, "--kernel", "6.18", "--ratio", "0,3")
    assert done.returncode == 0, done.stderr
    heading, off, on = done.stdout.splitlines()[:3]
    assert heading.split()[:3] == ["kernel", "ratio", "period"]
    assert off.split()[:3] == ["6.18", "0", "off"]
    assert on.split()[:4] == ["6.18", "3", "100", "ms"]
    assert "stalls of all vCPUs" in done.stdout


def test_dirty_logging():
    done = tdpmmu(
        *("dirty-log", "--memory", "32M", "--vcpus", "2", "--kernel", "6.18"),
        *("--rounds", "2", "--every", "50ms", "--mode", "bitmap,manual", "--json"),
    )
    assert done.returncode == 0, done.stderr
    modes = [one["knobs"]["dirty_log"] for one in json.loads(done.stdout)]
    assert modes == ["bitmap", "manual"]
    for one in json.loads(done.stdout):
        assert min(huge for _, huge, _ in one["coverage"]) == 0
        assert one["coverage"][-1][1] > 0


def test_the_answer_in_words():
    guest = ["--memory", "256M", "--vcpus", "2", "--until", "1s", "--kernel", "6.12,6.18"]
    out = tdpmmu("nx-recovery", *guest, "--ratio", "0,2,9", "--period-ms", "50,200").stdout
    old, new = out[out.index("\n6.12: ") :].split("\n6.18: ")
    assert "a vCPU that faults while recovery runs waits, up to " in old
    assert "not with ratio 0." in old
    assert "  Of those that recover anything, ratio 9 every 50 ms makes it wait least." in old
    assert "only rarer" in old
    assert new.startswith("no setting makes a vCPU wait.")
    assert "% with ratio 0, " in new
    alone = tdpmmu("nx-recovery", *guest[:-1], "6.12", "--ratio", "2", "--period-ms", "50").stdout
    assert "6.12: " not in alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "many"), "--ratio: expected whole numbers with commas, not 'many'"),
        (("--memory", "16 eggs"), "--memory: expected a size such as '16G', not '16 eggs'"),
        (("--memory", "3M"), "the guest: memory must be a multiple of 2 MiB, not 3145728 bytes"),
        (("--backing", "3M"), "the guest: backing must be 4K, 2M, 1G, not '3M'"),
        (("--until", "soon"), "--until: expected a time such as '100ms', '60s' or '1h'"),
        (("--kernel", "6.21"), "unknown kernel '6.21'; did you mean 6.1"),
        (("--kernel", "6.12+recover-under-write-lock"), "is for kernel 6.18, not 6.12"),
        (("--guest", "servr"), "servr: neither a file nor one of the presets frozen-1g"),
        (("--guest", "none.toml"), "none.toml: No such file or directory; expected a TOML file"),
        (("--costs", "none.toml"), "none.toml: "),
        (("--engine", "steam"), "'steam' is no engine"),
        (("--until", "0s"), "--until: expected more than '0s'"),
        (("--until", "9999999h"), "--until: expected 36 years at most, not '9999999h'"),
        (("--memory", "9" * 400), "--memory: expected an exbibyte at most"),
        (("--ratio", "9" * 12), "ratio and period_ms must not be more than 4294967295"),
        (("--period-ms", "9" * 12), "ratio and period_ms must not be more than 4294967295"),
        ((*SMALL, "--plot", "none/a.png"), "none/a.png: No such file or directory; expected a"),
        ((*SMALL, "--parquet", "."), ".: Is a directory; expected a file to write"),
        ((*SMALL, "--plot", "a.gif"), "--plot: expected a file that ends with png, svg, pdf"),
    ],
)
def test_wrong_command_lines(arguments, message, tmp_path):
    done = tdpmmu("nx-recovery", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("tdpmmu: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_typo_in_a_file_is_answered_with_line_and_key(tmp_path):
    path = tmp_path / "guest.toml"
    path.write_text('[guest]\nmemory = "1G"\n\n[[workload.phase]]\npatern = "zipf"\n')
    done = tdpmmu("nx-recovery", "--guest", str(path))
    assert done.returncode == 2
    expected = "guest.toml:5: key 'patern' unknown in [workload.phase]; did you mean 'pattern'?"
    assert done.stderr.rstrip().endswith(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[knobs]\nhost_cpus = -1\n",
            ":2: key 'host_cpus': expected a whole number from 0 to 8192",
        ),
        ("[knobs]\nnodes = 9\n", ":2: key 'nodes': expected a whole number from 0 to 8, not 9"),
        (
            '[knobs]\nratio = 6\nfar_wait = "9ns"\n',
            ":1: near_wait and far_wait are about NUMA: expected nodes, too",
        ),
        ("[knobs]\nratio = 4294967296\n", ":2: key 'ratio': expected a whole number from 0 to"),
        ('[guest]\nmemory = "1G"\n[run]\nuntil = "0s"\n', ":4: key 'until': expected more than"),
        (
            '[guest]\nmemory = "1G"\n[[workload.phase]]\nzipf = nan\n',
            ":4: key 'zipf': expected a number from 0.01 to 10, not nan",
        ),
        (
            '[guest]\nmemory = "1G"\n[[workload.phase]]\nvisits_per_s = inf\n',
            ":4: key 'visits_per_s': expected a number from 0.001 to 1e+09, not inf",
        ),
        ("[knobs]\ntick_hz = true\n", ":2: key 'tick_hz': expected a whole number from 0"),
        ('[guest]\nmemory = "1G"\nsmall = "2M"\n', ":3: what the host backs by 4K pages besides"),
        ('[guest]\nmemory = "1G"\nsmall = "1M"\n', ":3: small must be a multiple of 2 MiB"),
    ],
)
def test_a_host_that_cannot_be_is_answered_with_its_line(text, said, tmp_path):
    path = tmp_path / "guest.toml"
    path.write_text(text if "[guest]" in text else f'{text}[guest]\nmemory = "1G"\n')
    done = tdpmmu("nx-recovery", "--guest", str(path))
    assert done.returncode == 2
    assert f"guest.toml{said}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_host_shows_in_what_vcpus_wait_for():
    options = ("--kernel", "6.18", "--ratio", "2", "--json", "--workers", "1")
    plain, busy = (
        json.loads(tdpmmu("nx-recovery", *SMALL, *options, *more).stdout)[0]
        for more in ((), ("--host-cpus", "1", "--noise"))
    )
    assert not {"cpu wait", "host noise"} & set(plain["stall_ns"])
    # Two vCPUs that never halt have one CPU.
    assert busy["stall_ns"]["cpu wait"] > 200_000_000
    assert busy["stall_ns"]["host noise"] > 0


def test_presets_are_listed_and_can_all_be_read():
    from tdpmmu.simulation.files import presets, read_experiment

    done = tdpmmu("presets")
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed == list(presets())
    for name in listed:
        experiment = read_experiment(name)
        assert experiment.until_ns > 0
        rows = next(iter(experiment.workload.touches(0, _rng())))
        assert len(rows.gfn) == len(rows.access) == len(rows.think_ns) > 0
        assert 0 <= rows.gfn.min() <= rows.gfn.max() < experiment.guest.pages


def _rng():
    numpy = pytest.importorskip("numpy")
    return numpy.random.default_rng(1)


def test_calibrate_writes_costs_that_can_be_used(tmp_path):
    from tdpmmu.worlds.simulate.costs import load_costs

    out = tmp_path / "costs.toml"
    trace = "tests/data/traces/6.12-tdp1/trace.dat.xz"
    done = tdpmmu("calibrate", trace, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "emulated CPU" in done.stdout
    assert "lock hand-over" in done.stdout
    shipped, fitted = load_costs(), load_costs(out)
    assert fitted.zap_leaf > 10 * shipped.zap_leaf
    assert fitted.ipi_send == shipped.ipi_send
    assert "emulated CPU" in out.read_text()


def test_calibrate_refuses_what_is_no_trace(tmp_path):
    path = tmp_path / "no.txt"
    path.write_text("nothing of the sort\n")
    done = tdpmmu("calibrate", str(path))
    assert done.returncode == 2
    assert "line 1" in done.stderr


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    done = tdpmmu("nx-recovery", *SMALL)
    assert done.returncode == 2
    assert done.stderr == "tdpmmu: simulate needs numba: pip install 'tdpmmu[simulate]'\n"
