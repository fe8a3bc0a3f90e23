"""The report in a real browser: keys, clicks, looks, and no complaint."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser as start_browser
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_render import found

from tdpmmu.scenarios.showing import report

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; the first has 60 steps that matter."""
    runs = [
        found("stale-translation", "5.12-rc4", legacy=5, fanout=3),
        found("flush-owed", "5.12-rc4", legacy=0),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report(runs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> list[dict[str, Any]]:
    match = re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    assert match is not None
    runs: list[dict[str, Any]] = json.loads(match[1])
    return runs


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("home")) as found:
        yield found


def opened(browser: Browser, file: Path, at: str = "", **options: Any) -> Page:
    """The report in a fresh window; what the browser complains of is kept in ``page.said``."""
    options = {"viewport": DESKTOP, "reduced_motion": "reduce", "color_scheme": "light", **options}
    page = browser.new_context(**options).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url[:4] == "http" else 0)
    page.said = said  # type: ignore[attr-defined]
    page.goto(file.as_uri() + at)
    return page


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    page = opened(browser, file)
    yield page
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()


def step(page: Page) -> int:
    return int(page.locator("#slider").input_value())


def shown(page: Page, panel: str) -> list[tuple[str, str]]:
    """Label and text of every row that is there now."""
    rows = page.locator(f"#{panel} .row:not(.gone)")
    texts: list[tuple[str, str]] = rows.evaluate_all(
        "rows => rows.map(r => [r.querySelector('.label').textContent,"
        " r.querySelector('.text').textContent])"
    )
    return [tuple(one) for one in texts]  # type: ignore[misc]


def expected(run: dict[str, Any], at: int, panel: int) -> list[tuple[str, str]]:
    rows = (run["rows"][row] for row in run["panels"][run["states"][at][panel]])
    return [(row[2], row[3].replace(" -> ", " → ")) for row in rows]


def zap(run: dict[str, Any]) -> int:
    return next(int(at) for at, notes in run["marks"].items() if "stale from here" in notes[0])


def pixels(shot: bytes) -> Image.Image:
    return Image.open(io.BytesIO(shot)).convert("RGB")


def count(image: Image.Image, colour: str) -> int:
    """How many pixels have just this colour, given as CSS computes it."""
    wanted = tuple(int(part) for part in re.findall(r"\d+", colour)[:3])
    return sum(pixel == wanted for pixel in image.get_flattened_data())


def test_a_run_of_sixty_steps_is_small_and_opens_at_once(
    browser: Browser, file: Path, data: list[dict[str, Any]]
) -> None:
    assert len({line["step"] for line in data[0]["lines"]["some"]}) >= 60
    assert file.stat().st_size < 1_000_000
    page = opened(browser, file)
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < milliseconds < 1000
    page.context.close()


def test_it_asks_for_nothing_and_says_what_is_wrong(page: Page, data: list[dict[str, Any]]) -> None:
    run = page.locator(".run:visible")
    expect(run.locator(".sentence")).to_have_text(data[0]["sentence"])
    expect(run.locator(".badge")).to_have_text("harm")
    expect(run.locator(".meaning")).to_have_text("a stale translation reaches a page the host has "
                                                 "reused")  # fmt: skip
    assert step(page) == len(data[0]["steps"])
    assert data[0]["sentence"] in page.locator("#now").inner_text()


def test_keys_move_through_the_run(page: Page, data: list[dict[str, Any]]) -> None:
    run = data[0]
    stops = sorted({0, len(run["steps"]), *(line["step"] for line in run["lines"]["some"])})
    page.keyboard.press("Home")
    assert step(page) == 0
    for stop in stops[1:6]:
        page.keyboard.press("ArrowRight")
        assert step(page) == stop
    page.keyboard.press("ArrowLeft")
    assert step(page) == stops[4]
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert step(page) == stops[4]
    page.keyboard.press("End")
    assert step(page) == stops[-1]
    page.keyboard.press("ArrowRight")
    assert step(page) == stops[-1]
    page.keyboard.press("PageUp")
    who = [run["steps"][max(at, 1) - 1]["thread"] for at in stops]
    assert who[stops.index(step(page))] != who[-1]
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert step(page) == 2


def test_every_step_shows_its_state(page: Page, data: list[dict[str, Any]]) -> None:
    page.keyboard.press("Home")
    run = data[0]
    while True:
        at = step(page)
        for panel, name in enumerate(("tables", "cpus", "locks", "owed")):
            assert shown(page, name) == expected(run, at, panel), (at, name)
        if at == len(run["steps"]):
            break
        page.keyboard.press("ArrowRight")
        assert step(page) > at


def test_what_changed_is_lit_and_says_so(page: Page, data: list[dict[str, Any]]) -> None:
    at = zap(data[0])
    page.locator("#moments button", has_text="stale from here").click()
    assert step(page) == at
    lit = page.locator("#tables .row.lit")
    expect(lit).to_have_count(1)
    expect(lit.locator(".mark")).to_have_text("●")
    expect(lit.locator(".was")).to_contain_text("pfn 0x100000 rw-")
    expect(page.locator("#owed .row.stale")).to_have_count(1)
    expect(page.locator("#owed .row.stale .note")).to_contain_text("nx recovery")
    expect(page.locator("#now")).to_contain_text("stale from here")
    expect(page.locator(".line.here")).to_contain_text("→ none")
    expect(page.locator(".line.here")).to_be_in_viewport()


def test_clicks_choose_steps_runs_and_sources(page: Page, data: list[dict[str, Any]]) -> None:
    page.keyboard.press("Home")
    line = page.locator(".line:not(.call)").nth(3)
    line.click()
    assert step(page) == int(line.get_attribute("data-step") or 0)
    page.locator("#next").click()
    assert step(page) > int(line.get_attribute("data-step") or 0)

    button = page.locator("#now .stack button").last
    name = button.inner_text()
    button.click()
    expect(page.locator("#source")).to_be_visible()
    expect(page.locator("#source-name")).to_have_text(name)
    number, at = data[0]["steps"][step(page) - 1]["stack"][-1]
    function = data[0]["functions"][number]
    source = function["source"].splitlines()[at - function["first"]]
    expect(page.locator("#source-body .at")).to_contain_text(source.strip())
    page.keyboard.press("Escape")
    expect(page.locator("#source")).to_be_hidden()
    expect(button).to_be_focused()
    page.locator(".line.call .fn", has_text=re.compile("^zap_gfn_range$")).first.click()
    expect(page.locator("#source-body h3").first).to_contain_text("mmu/tdp_zap.py")
    page.locator("#source .close").click()


def test_tabs_go_from_run_to_run_and_links_lead_to_steps(
    browser: Browser, file: Path, data: list[dict[str, Any]]
) -> None:
    page = opened(browser, file, f"#2.{zap(data[1])}")
    assert step(page) == zap(data[1])
    expect(page.locator(".run:visible h1")).to_have_text("flush-owed")
    page.keyboard.press("Home")
    assert page.url.endswith("#2.0")
    page.locator("[role=tab]").first.click()
    expect(page.locator(".run:visible h1")).to_have_text("stale-translation")
    assert step(page) == len(data[0]["steps"])
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_and_can_be_read(
    browser: Browser, file: Path, data: list[dict[str, Any]], scheme: str, viewport: dict[str, int]
) -> None:
    page = opened(
        browser, file, f"#1.{zap(data[0])}", color_scheme=scheme, viewport=viewport, has_touch=True
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for name in ("#slider", "#first", "#back", "#next", "#end"):
        expect(page.locator(name)).to_be_in_viewport(ratio=1)
    for box in page.locator(".keys button").evaluate_all(
        "all => all.map(one => [one.offsetWidth, one.offsetHeight])"
    ):
        assert min(box) >= 32
    assert page.evaluate(CONTRAST) == []
    shot = pixels(page.screenshot())
    bright = sum(shot.convert("L").get_flattened_data()) / (shot.width * shot.height)
    assert bright > 200 if scheme == "light" else bright < 60
    keep(page, f"{scheme}-{viewport['width']}")
    page.context.close()


CONTRAST = """() => {
  const parts = (css) => css.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b]
    .map((c) => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(":disabled")) continue;
    let alpha = 1;
    for (let one = node; one; one = one.parentElement) alpha *= getComputedStyle(one).opacity;
    const under = back(node);
    const ink = parts(getComputedStyle(node).color).slice(0, 3).map((c, i) => c * alpha + under[i] * (1 - alpha));
    const [high, low] = [lum(ink), lum(under)].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${node.className}: ${node.textContent.slice(0, 40)}`);
  }
  return bad;
}"""  # noqa: E501
"""Text whose contrast with what is behind it is below what WCAG 2 asks for (AA)."""


def keep(page: Page, name: str) -> None:
    """Leave a screenshot for a person to look at, if TDPMMU_SCREENSHOTS names a folder."""
    folder = os.environ.get("TDPMMU_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


def test_pictures_differ_where_the_state_does(page: Page, data: list[dict[str, Any]]) -> None:
    at = zap(data[0])
    page.evaluate(f"location.hash = '#1.{at}'")
    page.reload()
    alarm = page.locator("#owed .row.stale").evaluate(
        "row => getComputedStyle(row).backgroundColor"
    )
    lit = page.locator("#tables .row.lit").evaluate("row => getComputedStyle(row).backgroundColor")
    after = {name: pixels(page.locator(f"#{name}").screenshot()) for name in ("owed", "tables")}
    assert count(after["owed"], alarm) > 1000
    assert count(after["tables"], lit) > 1000
    page.keyboard.press("Home")
    before = {name: pixels(page.locator(f"#{name}").screenshot()) for name in after}
    assert count(before["owed"], alarm) == 0
    assert count(before["tables"], lit) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    again = pixels(page.locator("#tables").screenshot())
    assert list(again.get_flattened_data()) == list(before["tables"].get_flattened_data())


@pytest.mark.parametrize("eyes", ["deuteranopia", "protanopia", "tritanopia", "achromatopsia"])
def test_what_is_lit_or_stale_can_be_told_without_colours(
    page: Page, data: list[dict[str, Any]], eyes: str
) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setEmulatedVisionDeficiency", {"type": eyes})
    page.locator("#moments button", has_text="stale from here").click()
    for row, other in (("#tables .row.lit", "#tables .row.leaf, #tables .row.none"),
                       ("#cpus .row.stale", "#cpus .row.table")):  # fmt: skip
        ours = pixels(page.locator(row).first.screenshot()).getpixel((12, 3))
        theirs = pixels(page.locator(other).first.screenshot()).getpixel((12, 3))
        assert isinstance(ours, tuple)
        assert isinstance(theirs, tuple)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) >= 8, (row, ours, theirs)
    expect(page.locator("#cpus .row.stale")).to_contain_text("STALE")


def test_all_can_be_reached_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, ring = page.evaluate(
            "[document.activeElement.id || document.activeElement.className,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.add(name)
        if name:
            assert ring != "none", name
    assert {"keys", "theme", "back", "next", "slider", "every", "fn", "lines"} <= reached
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_the_look_can_be_changed(page: Page) -> None:
    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light = ground()
    page.keyboard.press("t")
    assert ground() != light
    page.locator("#theme").click()
    assert ground() == light


def test_what_holds_needs_no_script(browser: Browser, tmp_path: Path) -> None:
    from tdpmmu.render.report.page import page as make_page

    verdict = {"status": "holds", "what": "x on 6.18", "sentence": "holds", "facts": ["1 state"]}
    path = tmp_path / "holds.html"
    path.write_text(make_page([], "x", verdict), encoding="utf-8")
    page = opened(browser, path)
    expect(page.locator(".badge")).to_have_text("holds")
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()
