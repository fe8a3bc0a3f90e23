"""The pytest plugin: scenarios kept as tests::

    @pytest.mark.tdpmmu(kernel="6.12", patch=MyPatch, levels=2)
    def test_my_patch_is_safe():
        pass

    def test_it_is_not_slower(tdpmmu):
        verdict = tdpmmu(kernel="6.12", patch=MyPatch)
        assert verdict.exploration.states < 10_000

A test that fails shows the interleaving that goes wrong, and the token that replays it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tdpmmu.notebook import Patch
    from tdpmmu.scenarios.question import Verdict

_WIDTH = 88


class Unexpected(AssertionError):
    """A verdict that is not the expected one; the text says why, with interleaving and token."""

    def __init__(self, text: str, verdict: Verdict) -> None:
        super().__init__(text)
        self.verdict = verdict


def ask(
    *,
    kernel: str = "6.18",
    patch: Patch | Sequence[Patch] = (),
    scenario: str | type[Any] = "nx-recovery",
    expect: str | Sequence[str] = "holds",
    properties: str = "all",
    seconds: float = 60,
    states: int = 0,
    **parameters: Any,
) -> Verdict:
    """Put a question to the explorer.

    ``scenario`` and ``patch`` are named as on the command line, or are the classes themselves;
    ``parameters`` are the scenario's.  ``expect`` is ``"holds"``, or the property, or properties,
    that have to be violated.  ``seconds`` and ``states`` are the budget, 0 is none.

    Unexpected if the verdict is another one, or the budget runs out; ValueError for a question
    that makes no sense.
    """
    from tdpmmu.notebook import check
    from tdpmmu.scenarios.question import heeded

    verdict = check(
        kernel=kernel,
        patch=patch,
        scenario=scenario,
        properties=properties,
        seconds=seconds,
        states=states,
        **parameters,
    )
    heeded(verdict)
    wanted = (expect,) if isinstance(expect, str) else tuple(expect)
    problem = _problem(verdict, () if wanted == ("holds",) else wanted)
    if problem:
        raise Unexpected(f"{problem}\n\n{_told(verdict)}".rstrip(), verdict)
    return verdict


def _problem(verdict: Verdict, wanted: tuple[str, ...]) -> str:
    """What is not as it should be, in a line."""
    from tdpmmu.scenarios.question import HOLDS

    violated = {found.prop for found in verdict.violations}
    line = f"{verdict.question.title()}: {verdict.sentence()}"
    if wanted:
        missing = [prop for prop in wanted if prop not in violated]
        return f"{line}; expected: violated: {', '.join(missing)}" if missing else ""
    return "" if verdict.status == HOLDS else f"{line}; expected: holds"


def _told(verdict: Verdict) -> str:
    from tdpmmu.scenarios.showing import text_of

    return "\n\n".join(
        f"{text_of(token, width=_WIDTH)}\n\nreplay with: tdpmmu explain {token}"
        for token in (verdict.tokens[found.prop] for found in verdict.violations)
    )


# --- hooks ----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--tdpmmu-html``."""
    parser.getgroup("tdpmmu").addoption(
        "--tdpmmu-html",
        metavar="DIR",
        help="write the runs of failed tests as pages for a browser into this directory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers",
        "tdpmmu(kernel, patch, scenario, expect, seconds, ...): explore a scenario before the test;"
        " fails unless it holds, or violates what is expected",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Ask what the test's markers say; then the test runs as any other."""
    for marker in pyfuncitem.iter_markers("tdpmmu"):
        if marker.args:
            pytest.fail("@pytest.mark.tdpmmu takes keyword arguments only", pytrace=False)
        _judge(pyfuncitem, marker.kwargs)


@pytest.fixture
def tdpmmu(request: pytest.FixtureRequest) -> Callable[..., Verdict]:
    """Asks a question, see :func:`ask`; fails the test if the verdict is not the expected one."""
    return lambda **question: _judge(request.node, question)


def _judge(item: pytest.Item, question: Mapping[str, Any]) -> Verdict:
    try:
        return ask(**question)
    except Unexpected as error:
        pages = _write_page(item, error.verdict)
        pytest.fail(f"{error}{pages}", pytrace=False)
    except (ValueError, TypeError) as error:
        pytest.fail(f"tdpmmu: {error}", pytrace=False)


def _write_page(item: pytest.Item, verdict: Verdict) -> str:
    """Write the report if that is wanted; says where it is."""
    directory = item.config.getoption("--tdpmmu-html")
    if not directory or not verdict.violations:
        return ""
    from tdpmmu.cli.report import write_verdict

    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, re.sub(r"[^\w.-]+", "-", item.nodeid) + ".html")
    write_verdict(path, verdict)
    return f"\n\nto look at: {path}"
