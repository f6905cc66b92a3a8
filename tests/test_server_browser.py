"""The page of `infer serve` in headless Chromium: what people get to see, and what it asks for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving import (
    Served,
    bright_parts,
    brightness,
    embedder,
    left_half,
    loudness,
    recording,
    serving,
)
from tests.test_bench_browser import browser  # noqa: F401 -- the fixture
from tests.test_server import _png
from tests.tiny import identity, write

pytestmark = pytest.mark.slow
TOKEN = "correct-horse-battery"
# the tab, and every address that it asked for
Open = Callable[..., tuple[Any, list[str]]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    models = [embedder(folder / "words.infer"), brightness(folder / "bright.infer")]
    models.append(loudness(folder / "loud.infer"))
    models += [left_half(folder / "left.infer"), bright_parts(folder / "parts.infer")]
    with serving(folder, *models, write(folder, identity("float32"), "net.onnx")) as running:
        yield running


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:  # noqa: F811
    """Opens the page; a complaint of the browser, about its policy for instance, fails the test."""
    contexts, complaints = [], []

    def open_(served: Served, width: int = 800) -> tuple[Any, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        tab, asked = context.new_page(), []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(served.url, wait_until="networkidle")
        return tab, asked

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in complaints if "401" not in text and "400" not in text] == []


def answer(tab: Any) -> str:
    tab.wait_for_selector("#ask:not([disabled])")
    return str(tab.text_content("#answer"))


def test_each_kind_of_model_is_asked(served: Served, opened: Open) -> None:
    """A text is typed, a picture is chosen, an array is JSON; latency and plan are shown."""
    tab, asked = opened(served)
    tab.fill("#text", "one two")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#answer:not([hidden])")
    assert '"vector"' in answer(tab)
    assert "ms" in tab.text_content("#status")
    assert "onnxruntime" in tab.text_content("#plan")
    tab.select_option("#model", "bright")
    picture = {"name": "white.png", "mimeType": "image/png", "buffer": _png("white")}
    tab.set_input_files("#file", files=[picture])
    assert tab.get_attribute("#picture", "alt") == "white.png"
    tab.click("#ask")
    tab.wait_for_selector("#answer:not([hidden])")
    assert tab.text_content("#labels div:first-child span") == "bright"
    tab.select_option("#model", "net")
    tab.fill("#text", '{"x": [[1, 2]]}')
    tab.click("#ask")
    tab.wait_for_selector("#answer:not([hidden])")
    assert np.allclose(
        tab.evaluate("JSON.parse(document.getElementById('answer').textContent).y"), [[1, 2]]
    )
    assert all(url.startswith((f"{served.url}/", f"blob:{served.url}/", "data:,")) for url in asked)


def test_a_picture_is_dropped(served: Served, opened: Open) -> None:
    tab, _ = opened(served)
    tab.select_option("#model", "bright")
    text = base64.b64encode(_png("black")).decode()
    tab.evaluate(
        """text => {
          const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], "black.png", {type: "image/png"}));
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
        }""",
        text,
    )
    tab.click("#ask")
    tab.wait_for_selector("#answer:not([hidden])")
    assert tab.text_content("#labels div:first-child span") == "dark"


def _drawn(tab: Any) -> Image.Image:
    address = tab.evaluate("document.getElementById('drawn').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def _ask_about(tab: Any, model: str) -> None:
    """A picture of 80 × 40 whose left half is black, the right one white."""
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste("white", (40, 0, 80, 40))
    file = io.BytesIO()
    picture.save(file, "PNG")
    tab.select_option("#model", model)
    given = {"name": "halves.png", "mimeType": "image/png", "buffer": file.getvalue()}
    tab.set_input_files("#file", files=[given])
    tab.wait_for_function("document.getElementById('picture').naturalWidth")
    tab.click("#ask")
    tab.wait_for_selector("#answer:not([hidden])")


def test_what_is_found_is_drawn_on_the_picture(served: Served, opened: Open) -> None:
    """Boxes around things, and a colour for each class but the background; lines say which is which, and a
    reader of screens hears them."""
    tab, _ = opened(served)
    _ask_about(tab, "left")
    assert tab.get_attribute("#drawn", "aria-label") == "On the picture: left"
    assert tab.text_content("#labels div:first-child") == "left0.7500"
    drawn = _drawn(tab)
    assert drawn.size == (80, 40)
    edge, inside, outside = (drawn.getpixel(place) for place in ((40, 30), (20, 35), (70, 20)))
    assert max(edge) - min(edge) > 100
    assert (inside, outside) == ((0, 0, 0), (255, 255, 255))
    _ask_about(tab, "parts")
    assert tab.text_content("#labels div:first-child") == "background50.00 %"
    assert tab.text_content("#labels div:last-child") == "bright50.00 %"
    dark, bright = (_drawn(tab).getpixel(place) for place in ((20, 20), (60, 20)))
    assert dark == (0, 0, 0)
    assert max(bright) - min(bright) > 50
    tab.select_option("#model", "bright")
    assert tab.is_hidden("#drawn")


def test_a_sound_is_chosen_or_recorded(served: Served, opened: Open) -> None:
    """A file is heard on the page and asked; so is what the microphone gave, as a WAV file."""
    tab, _ = opened(served)
    assert tab.is_hidden("#record")
    tab.select_option("#model", "loud")
    tone = {"name": "tone.wav", "mimeType": "audio/wav", "buffer": recording(0.8)}
    tab.set_input_files("#file", files=[tone])
    tab.wait_for_selector("#sound:not([hidden])")
    tab.click("#ask")
    tab.wait_for_selector("#answer:not([hidden])")
    assert tab.text_content("#labels div:first-child span") == "loud"
    tab.click("#record")
    tab.wait_for_selector("#status:has-text('Recording …')")
    assert tab.text_content("#record") == "Stop"
    tab.wait_for_timeout(1200)
    tab.click("#record")
    tab.wait_for_selector("#status:has-text('Recorded')")
    tab.wait_for_function("document.getElementById('sound').duration > 0.5")  # once it is decoded
    tab.click("#ask")
    tab.wait_for_selector("#status:has-text('Answered')")
    assert tab.locator("#labels div").count() == 2


def test_errors_are_said(served: Served, opened: Open) -> None:
    """What the page sees itself, and what the server says."""
    tab, _ = opened(served)
    tab.select_option("#model", "bright")
    tab.click("#ask")
    assert tab.text_content("#status") == "Choose a file first."
    tab.select_option("#model", "net")
    tab.fill("#text", "{")
    tab.click("#ask")
    assert "not JSON" in tab.text_content("#status")
    tab.fill("#text", '{"x": [1]}')
    tab.click("#ask")
    tab.wait_for_selector("#status:has-text('must have 2 dims')")


def test_it_can_be_used_by_all(served: Served, opened: Open) -> None:
    """Every control has a name, the answer is announced, and nothing lies beside a small screen."""
    tab, _ = opened(served, width=320)
    nameless = (
        "[...document.querySelectorAll('select, textarea, input')].filter(e => !e.labels.length).length"
    )
    assert tab.evaluate(nameless) == 0
    assert tab.get_attribute("#status", "aria-live") == "polite"
    assert tab.get_attribute("html", "lang") == "en"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_token_is_asked_for(tmp_path: Path, opened: Open) -> None:
    """The page is open, its models are not: the field comes with the first refusal."""
    (tmp_path / "tokens").write_text(TOKEN, encoding="utf-8")
    model = embedder(tmp_path / "words.infer")
    with serving(tmp_path, model, "--token-file", tmp_path / "tokens") as served:
        tab, _ = opened(served)
        tab.wait_for_selector("#token")
        tab.fill("#token", TOKEN)
        tab.keyboard.press("Tab")
        tab.wait_for_selector("#model option[value=words]", state="attached")
        tab.fill("#text", "one")
        tab.click("#ask")
        tab.wait_for_selector("#answer:not([hidden])")
        assert '"vector"' in answer(tab)
