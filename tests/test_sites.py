"""``flushes`` and ``audit``: what is needed, and what is needless in a scenario."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import HOLDS, Question, ask
from tdpmmu.scenarios.removal import KINDS, removal, sites
from tdpmmu.scenarios.token import decode, reproduce
from tdpmmu.versions.registry import KERNELS, apply, kernel_class

TINY = NxRecovery(levels=2, roots=1, legacy=0, gfns=1)


def without(name: str, kernel: str, scenario: NxRecovery = TINY) -> Question:
    patch = removal(name)
    assert patch is not None
    return Question(scenario, apply(kernel_class(kernel), patch), kernel, (name,))


@pytest.mark.parametrize("kernel", KERNELS)
def test_sites_have_names_that_can_be_built_again(kernel: str) -> None:
    found = sites(kernel_class(kernel))
    assert {site.kind for site in found} >= {"no-flush", "no-rcu", "read-for-write"}
    assert len({site.patch for site in found}) == len(found)
    for site in found:
        patch = removal(site.patch)
        assert patch is not None
        assert patch.site == site


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_flush_is_a_site_where_it_is_called_for(kernel: str) -> None:
    """A removal inside the flush itself would remove nothing, and call everything needless."""
    assert not [
        one
        for one in sites(kernel_class(kernel), ("no-flush",))
        if "flush_remote_tlbs" in one.function
    ]


def test_names_of_another_form_are_not_removals() -> None:
    assert removal("flush-on-nx-zap") is None
    assert removal("no-such-thing@F") is None


@pytest.mark.parametrize(
    ("name", "kernel", "prop"),
    [
        ("no-flush@Notifier.invalidate_range_start#1", "6.18", "stale-translation"),
        ("no-flush@Linux_6_18.tdp_recovery_ends#1", "6.18", "freed-table"),
        ("no-rcu@Linux_6_12.tdp_mmu_map", "6.18", "use-after-free"),
        ("no-pages-lock@Linux_6_18.pick_nx_page", "6.18", "guard"),
        ("read-for-write@Notifier.invalidate_range_start", "6.18", "stale-translation"),
        ("no-flush@TdpZap.flush_removed_page#1", "5.12", "freed-table"),
    ],
)
def test_what_is_needed_is_found_with_a_token_that_replays(
    name: str, kernel: str, prop: str
) -> None:
    verdict = ask(without(name, kernel), first=prop)
    assert prop in verdict.tokens
    token = decode(verdict.tokens[prop])
    assert token.patches == (name,)
    assert reproduce(token) is not None


def test_what_is_needless_is_not_flagged() -> None:
    scenario = replace(TINY, legacy=1)
    name = "no-flush@ShadowMmu.remote_flush_or_zap#1"
    assert ask(without(name, "6.18", scenario)).status == HOLDS


def test_only_the_site_itself_is_changed() -> None:
    # The same function of another kernel is another site: nothing is taken away.
    name = "no-flush@Linux_6_18.tdp_recovery_ends#1"
    assert ask(without(name, "6.12")).status == HOLDS


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tdpmmu")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


SMALL = ["--set", "levels=2", "--set", "roots=1", "--set", "legacy=0", "--set", "gfns=1"]


def test_flushes_on_the_command_line() -> None:
    done = _run("flushes", "nx-recovery", "-k", "6.18", *SMALL, "--json")
    assert done.returncode == 0
    answers = {one["patch"]: one for one in json.loads(done.stdout)}
    assert answers["no-flush@Linux_6_18.tdp_recovery_ends#1"]["answer"] == "needed"
    assert answers["no-flush@MemslotUpdates.zap_gfn_range_all#1"]["answer"] == "not reached"
    assert all(one["what"] == KINDS["no-flush"] for one in answers.values())


def test_an_audit_of_what_does_not_hold_is_refused() -> None:
    done = _run("audit", "nx-recovery", "-k", "5.12-rc4", "--set", "levels=2")
    assert done.returncode == 2
    assert "audit what holds" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_scenario_across_all_kernels() -> None:
    done = _run("check", "nx-recovery", "--all-kernels", "--set", "levels=2", "--flush", "ranged")
    assert done.returncode == 1
    assert "first bad: 5.12-rc4" in done.stdout
    assert "first good after it: 5.12" in done.stdout


def test_a_parameter_with_a_typo_is_one_line() -> None:
    done = _run("check", "nx-recovery", "--set", "levls=2")
    assert done.returncode == 2
    assert done.stderr == "tdpmmu: --set levls=2: nx-recovery has no levls; it has levels\n"
