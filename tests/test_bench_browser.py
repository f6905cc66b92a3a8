"""The page of `infer bench --html` in a real browser, headless Chromium: what people get to see."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infer.measure.page import page
from tests.benched import plain, rich
from tests.test_bench_page import EVIL, poisoned

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
# a microphone that beeps, and may be used without asking
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
QUIET = ("background-networking", "component-update", "sync", "default-apps", "domain-reliability", "gpu")

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system has it. Without it the tests are skipped, but not where it must be there."""
    lacks = [] if Path(CHROMIUM).exists() else [f"no {CHROMIUM} (Debian package chromium)"]
    if importlib.util.find_spec("playwright") is None:
        lacks.append("no package playwright")
    if lacks:
        (pytest.fail if os.environ.get("INFER_NEEDS_BROWSER") else pytest.skip)(" and ".join(lacks))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", *MICROPHONE, *(f"--disable-{name}" for name in QUIET)],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a rich record, of the least one, of two, and of one whose every text is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    then = replace(rich(), conditions=replace(rich().conditions, created="2026-01-01T00:00:00+00:00"))
    documents = {
        "rich": page([rich()], ["rich.json"]),
        "plain": page([plain()], ["plain.json"]),
        "two": page([then, rich()], ["then.json", "now.json"]),
        "hostile": page([poisoned(rich())], [EVIL]),
    }
    found = {name: folder / f"{name}.html" for name in documents}
    for name, path in found.items():
        path.write_text(documents[name], encoding="utf-8")
    return found


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page by name at a width and in a theme; what it asks for and complains of is kept."""
    contexts = []

    def open_(name: str, width: int, theme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        tab = context.new_page()
        tab.asked, tab.complaints = [], []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("console", lambda message: tab.complaints.append(message.text))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.goto(pages[name].as_uri(), wait_until="networkidle")
        return tab

    yield open_
    for context in contexts:
        context.close()


# boxes of what is drawn and of the words in it, in pixels of the page
DRAWINGS = """[...document.querySelectorAll("svg")].map(svg => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] }
  return {box: box(svg), label: svg.getAttribute("aria-label"),
          words: [...svg.querySelectorAll("text")].map(t => [t.textContent, ...box(t)])}
})"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("name", ["rich", "plain", "two", "hostile"])
def test_it_renders(open_page: Open, name: str, width: int, theme: str) -> None:
    """No complaint, no request but for itself, nothing beside the screen, and every drawing has a box."""
    tab = open_page(name, width, theme)
    assert tab.complaints == []
    assert tab.asked == [tab.url]
    assert tab.evaluate("window.owned") is None
    wide, seen = tab.evaluate(WIDTHS)
    assert seen == width
    assert wide <= seen
    drawings = tab.evaluate(DRAWINGS)
    assert drawings
    for drawing in drawings:
        left, top, right, bottom = drawing["box"]
        assert right - left > 10
        assert bottom - top > 10
        assert 0 <= left <= right <= width


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("name", ["rich", "two", "hostile"])
def test_words_of_drawings_are_whole_and_apart(open_page: Open, name: str, width: int) -> None:
    """With the browser's own fonts, no word leaves its drawing and none lies on another."""
    for drawing in open_page(name, width).evaluate(DRAWINGS):
        left, top, right, bottom = drawing["box"]
        words = drawing["words"]
        for i, (word, *box) in enumerate(words):
            where = (drawing["label"], word)
            assert left - 1 <= box[0] <= box[2] <= right + 1, where
            assert top - 1 <= box[1] <= box[3] <= bottom + 1, where
            for other, *rest in words[:i]:
                across = min(box[2], rest[2]) - max(box[0], rest[0])
                down = min(box[3], rest[3]) - max(box[1], rest[1])
                # boxes are as high as a line, letters are not
                assert across <= 1 or down <= 0.25 * (box[3] - box[1]), (*where, other)


COLOURS = """(() => {
  const style = e => getComputedStyle(e)
  const path = document.querySelector("svg[role=img] path[style*='--c0']")
  return [style(document.body).backgroundColor, style(document.body).color, style(path).stroke,
          style(document.querySelector("svg[role=img] text")).fill]
})()"""


def test_drawings_follow_the_theme_and_print_on_white(open_page: Open) -> None:
    """Ground, words and lines change with the theme; paper is white whatever the theme is."""
    light = open_page("plain", 1400, "light").evaluate(COLOURS)
    tab = open_page("plain", 1400, "dark")
    dark = tab.evaluate(COLOURS)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert light[1] == light[3]
    assert dark[1] == dark[3]
    tab.emulate_media(media="print")
    printed = tab.evaluate(COLOURS)
    assert printed[0] == "rgb(255, 255, 255)"
    assert printed[1] == printed[3] == "rgb(0, 0, 0)"
    assert printed[2] == light[2]


@pytest.mark.parametrize("name", ["rich", "two"])
def test_it_fits_on_paper(open_page: Open, name: str) -> None:
    """On A4 with margins of 12 mm nothing is cut off at the right."""
    tab = open_page(name, 703)
    tab.emulate_media(media="print")
    wide, seen = tab.evaluate(WIDTHS)
    assert wide <= seen
    assert tab.pdf(format="A4").startswith(b"%PDF")
