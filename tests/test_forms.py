"""A run for a mail, for a bug tracker, as a diagram, and as delays for a real kernel."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from test_render import found
from typer.testing import CliRunner

from tdpmmu.cli import forms
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.explain import read_token
from tdpmmu.cli.main import app
from tdpmmu.render.diagram import WIDTH, diagram
from tdpmmu.render.lock_state import held_by, may_sleep
from tdpmmu.render.reproducer import Plan, plan
from tdpmmu.scenarios.showing import scene_of, told
from tdpmmu.scenarios.token import Reproduction
from tdpmmu.worlds.replay import Replay, cut

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def stale() -> Reproduction:
    return found("stale-translation", "5.12-rc4", legacy=0)


@pytest.fixture(scope="module")
def cut_short() -> Reproduction:
    """A run that goes wrong while another thread stands in the middle of its way."""
    return found("kernel-warning", "5.12", "read-lock-cmpxchg", legacy=0, roots=1, unmap=False)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, UsageError):
        return 2, str(done.exception)
    return done.exit_code, done.output


# --- mails ----------------------------------------------------------------------------------------


def test_a_mail_has_72_columns_of_ascii(stale: Reproduction) -> None:
    text = forms.mail(stale)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 72
    assert "HARM stale-translation" in text
    assert "stale from here" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("prefix", ["", "> ", "> > | ", "\t"])
@pytest.mark.parametrize("after", ["", "Thanks\nAnna\n", "\nCheers\n"])
def test_a_token_is_found_in_a_mail_and_in_answers_to_it(
    stale: Reproduction, tmp_path: Path, prefix: str, after: str
) -> None:
    lines = ["Hi,", *forms.mail(stale).rstrip().splitlines()]
    path = tmp_path / "mail.txt"
    path.write_text("".join(f"{prefix}{line}\r\n" for line in lines) + after)
    assert read_token(f"@{path}") == stale.token.encode()


def test_a_token_with_a_piece_missing_is_refused(stale: Reproduction, tmp_path: Path) -> None:
    lines = forms.mail(stale).rstrip().splitlines()
    path = tmp_path / "mail.txt"
    path.write_text("\n".join(lines[:-2] + lines[-1:]))
    code, output = invoke("explain", f"@{path}")
    assert code == 2
    assert "damaged or cut short" in output


# --- markdown -------------------------------------------------------------------------------------


def test_markdown_has_the_run_as_code_and_says_the_rest_once(stale: Reproduction) -> None:
    text = forms.markdown(stale)
    before, run, after = re.split(r"```.*\n", text)
    assert before.startswith("## HARM: stale-translation\n")
    assert run.startswith("At the start:\n")
    assert "stale from here" in run
    assert before.count("no flush reaches vCPU0 after that") == 1
    assert "no flush reaches vCPU0 after that" not in run
    assert f"`tdpmmu explain {stale.token.encode()}`" in after


def test_markdown_keeps_what_is_not_markup() -> None:
    assert forms.escaped("a_b <c> [d](e) `f` *g* h|i \\") == (
        "a\\_b \\<c\\> \\[d\\](e) \\`f\\` \\*g\\* h\\|i \\\\"
    )


# --- diagrams -------------------------------------------------------------------------------------


def drawn(done: Reproduction) -> xml.Element:
    return xml.fromstring(diagram(done.records, told(done), scene_of(done)))


def by_class(svg: xml.Element, tag: str, name: str) -> list[xml.Element]:
    return [one for one in svg.iter(SVG + tag) if one.get("class") == name]


def test_a_diagram_has_a_lifeline_for_each_thread(stale: Reproduction) -> None:
    svg = drawn(stale)
    names = [one.text for one in by_class(svg, "text", "name")]
    assert names == ["nx recovery", "vCPU0", "host"]
    lines = [float(one.get("x1", "")) for one in by_class(svg, "line", "life")]
    assert lines == sorted(set(lines))
    assert len(by_class(svg, "rect", "turn")) == 4


def test_an_arrow_leads_from_who_asks_for_a_flush_to_the_vcpu(stale: Reproduction) -> None:
    svg = drawn(stale)
    lives = [float(one.get("x1", "")) for one in by_class(svg, "line", "life")]
    arrows = by_class(svg, "path", "arrow")
    assert len(arrows) == 1
    way = [float(number) for number in re.findall(r"[\d.]+", arrows[0].get("d", ""))]
    assert way[0] == lives[0]
    assert lives[1] - 12 < way[2] < lives[1]
    said = next(one for one in svg.iter(SVG + "text") if "KVM_REQ" in (one.text or ""))
    assert float(said.get("y", "")) < way[1] < float(said.get("y", "")) + 17


def test_what_a_tlb_may_hold_is_a_bar_that_turns_stale(stale: Reproduction) -> None:
    svg = drawn(stale)
    (held,), (bad,) = by_class(svg, "rect", "held"), by_class(svg, "rect", "stale")
    texts = {(one.text or ""): float(one.get("y", "")) for one in svg.iter(SVG + "text")}
    entry = next(y for text, y in texts.items() if text == "VM entry")
    note = next(y for text, y in texts.items() if "stale from here" in text)
    top, height = float(held.get("y", "")), float(held.get("height", ""))
    assert abs(top - entry) < 17
    assert top + height == pytest.approx(float(bad.get("y", "")), abs=0.2)
    assert 0 < note - float(bad.get("y", "")) < 40


def test_no_text_leaves_the_picture(stale: Reproduction, cut_short: Reproduction) -> None:
    for done in (stale, cut_short):
        svg = drawn(done)
        height = float(svg.get("height", ""))
        for one in svg.iter(SVG + "text"):
            start = float(one.get("x", "")) if one.get("text-anchor") is None else 0
            assert start + len(one.text or "") * 7.3 <= WIDTH, one.text
            assert float(one.get("y", "")) < height


# --- delays ---------------------------------------------------------------------------------------


def planned(done: Reproduction) -> tuple[Plan, Replay]:
    run = Replay(done.subject.built.machine, cut(done.token.schedule, len(done.records)))
    for _ in run:
        pass
    return plan(done.records, told(done), scene_of(done), run.standing()), run


@pytest.mark.parametrize("which", ["stale", "cut_short"])
def test_delays_hold_threads_just_where_they_are_overtaken(
    which: str, request: pytest.FixtureRequest
) -> None:
    done: Reproduction = request.getfixturevalue(which)
    made, _ = planned(done)
    assert made.delays
    turns = [(turn.thread, turn.first, turn.last) for turn in made.turns]
    assert [step for _, first, last in turns for step in range(first, last + 1)] == [
        record.number for record in done.records
    ]
    held = {delay.step: delay for delay in made.delays}
    machine = done.subject.built.machine
    for thread, _, last in turns[:-1]:
        run = Replay(machine, cut(done.token.schedule, last))
        for _ in run:
            pass
        places, op = run.standing()[thread]
        run.close()
        delay = held.pop(last, None)
        if op is None:
            assert delay is None
            continue
        assert delay is not None
        assert (delay.thread, delay.before) == (thread, op.describe())
        assert places
        state = done.records[last - 1].after
        locks = held_by(machine.layout, state, thread)
        assert delay.sleeps == may_sleep(locks)
        assert all(name in delay.context.lower() for name, _ in locks)
    assert not held


def test_a_delay_says_what_to_wait_for(stale: Reproduction, cut_short: Reproduction) -> None:
    made, _ = planned(stale)
    delay, in_guest = made.delays
    assert delay.chain[-1] == "tdp_mmu_set_spte"
    assert "zap_gfn_range" in delay.chain
    assert delay.until.startswith("vCPU0 has done: vCPU0's TLB may hold gfn 0x0 2M")
    assert not in_guest.until
    assert not delay.sleeps
    assert "under mmu_lock (write)" in delay.context
    to_the_end = [one for one in planned(cut_short)[0].delays if not one.until]
    (late,) = to_the_end
    assert late.before == "spin_lock(tdp_mmu_pages_lock)"
    assert late.after.startswith("gfn 0x0 2M: none -> table ")
    assert late.chain[-1] == "tdp_mmu_link_page"
    text = forms.reproducer(cut_short, 80)
    assert "until    the end of the test" in text
    assert "mdelay" in text
    assert max(map(len, text.splitlines())) <= 80


# --- the command ----------------------------------------------------------------------------------


def test_every_form_can_be_had_from_the_command_line(stale: Reproduction, tmp_path: Path) -> None:
    token = stale.token.encode()
    assert invoke("explain", token, "--mail") == (0, forms.mail(stale))
    assert invoke("explain", token, "--markdown") == (0, forms.markdown(stale))
    assert invoke("explain", token, "--reproducer") == (0, forms.reproducer(stale, 80))
    path = tmp_path / "run.svg"
    assert invoke("explain", token, "--diagram", str(path)) == (0, "")
    assert path.read_text() == diagram(stale.records, told(stale), scene_of(stale))


@pytest.mark.parametrize(
    "options",
    [("--mail", "--markdown"), ("--json", "--html", "x"), ("--reproducer", "--diagram", "x")],
)
def test_forms_do_not_mix(options: tuple[str, ...]) -> None:
    code, output = invoke("explain", "tdpmmu1-x", *options)
    assert code == 2
    assert "do not go together: choose one" in output
