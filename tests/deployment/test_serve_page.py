"""The server's web page in headless Chromium."""

import base64
import io
from pathlib import Path

import pytest
from chromium import Browser
from conftest import Registered
from PIL import Image
from selenium.webdriver.common.keys import Keys
from serving import Server, serving
from test_serve_limits import KEY, photo, scores_of

from nuswide.tagger import Tagger

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a <b>photo.jpg"
    path.write_bytes(photo(33, (300, 200)))
    return path


SHOWN = """[...document.querySelectorAll('#labels li')].map(item => ({
  name: item.querySelector('.name').innerText,
  text: item.innerText.replace(/\\s+/g, ' ').trim() ,
  spoken: item.querySelector('.aside').textContent,
  fill: parseFloat(item.querySelector('.fill').style.width),
  mark: parseFloat(item.querySelector('.mark').style.left),
  yes: item.className === 'yes',
}))"""


def test_an_uploaded_photo_gets_bars_with_scores_and_thresholds(
    server: Server, browser: Browser, file: Path, registered: Registered
) -> None:
    tagger = Tagger.load(registered.folder / "artifacts" / "bundle")
    expected = scores_of(tagger, file.read_bytes())
    thresholds = dict(zip(tagger.labels, tagger.thresholds, strict=True))
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("#status", "No photo yet.")
    browser.type("#file", str(file))
    predicted = {label for label in expected if expected[label] >= thresholds[label]}
    words = f"{len(predicted)} of 5 labels" if predicted else "No label reaches"
    assert file.name in browser.wait_for_text("#status", words)
    bars = {bar["name"]: bar for bar in browser.ask(SHOWN)}
    assert set(bars) == set(tagger.labels)
    assert {name for name, bar in bars.items() if bar["yes"]} == predicted
    for name, bar in bars.items():
        assert bar["fill"] == pytest.approx(100 * expected[name], abs=0.01)
        assert bar["mark"] == pytest.approx(100 * thresholds[name], abs=0.01)
        assert f"{100 * expected[name]:.0f} %" in bar["text"]
        assert f"threshold of {100 * thresholds[name]:.0f} %" in bar["spoken"]
    assert browser.ask("document.getElementById('preview').naturalWidth") == 300
    assert browser.console() == []


def test_a_photo_can_be_pasted_and_dropped(server: Server, browser: Browser, file: Path) -> None:
    script = """
    const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], arguments[1], {type: 'image/jpeg'}));
    window.dispatchEvent(arguments[1] === 'dropped.jpg'
      ? new DragEvent('drop', {dataTransfer: data, cancelable: true})
      : new ClipboardEvent('paste', {clipboardData: data}))"""
    browser.get(f"http://127.0.0.1:{server.port}/")
    for name in ("pasted.jpg", "dropped.jpg"):
        browser.execute_script(script, base64.b64encode(file.read_bytes()).decode(), name)
        browser.wait_for_text("#status", f"for {name}")
        assert len(browser.ask(SHOWN)) == 5


def test_the_status_reports_a_file_that_is_not_an_image(
    server: Server, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.type("#file", str(tmp_path / "text.jpg"))
    browser.wait_for_text("#status", "not a readable picture")
    assert browser.ask(SHOWN) == []


def test_the_page_can_be_used_by_keyboard_and_read_aloud(
    server: Server, browser: Browser, file: Path
) -> None:
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.press(Keys.TAB)
    assert browser.ask("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert browser.ask(outline) == "solid"
    browser.type("#file", str(file))
    browser.wait_for_text("#status", f"for {file.name}")
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(n.get("role", {}).get("value"), n.get("name", {}).get("value")) for n in tree}
    assert ("heading", "Try the tagger") in named and ("region", "Labels") in named
    assert {"status", "main", "banner", "list", "listitem"} <= {role for role, _ in named}
    assert ("image", f"The photo: {file.name}") in named
    (status,) = [n for n in tree if n.get("role", {}).get("value") == "status"]
    assert {p["name"]: p["value"].get("value") for p in status["properties"]}["live"] == "polite"
    assert browser.ask("document.documentElement.lang") == "en"


CONTRAST = """
const texts = 'h1, h2, p, strong, button, .name, .score, #legend span', seen = [];
const light = c => c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const ground = node => rgb(getComputedStyle(node).backgroundColor);
for (const node of document.querySelectorAll(texts)) {
  let under = node;
  while (under !== document.body && ground(under)[3] === 0) under = under.parentElement;
  if (!node.innerText.trim()) continue;
  const pair = [rgb(getComputedStyle(node).color), ground(under)].map(luminance);
  seen.push([node.innerText, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)]);
}
return seen"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_text_has_contrast_and_nothing_overflows(
    server: Server, browser: Browser, file: Path, scheme: str, width: int
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.resize(width)
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.type("#file", str(file))
    browser.wait_for_text("#status", f"for {file.name}")
    measured = browser.execute_script(CONTRAST)
    assert len(measured) > 12
    assert not [pair for pair in measured if pair[1] < 4.5]  # WCAG 2.2, level AA
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ground = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L").getpixel((2, 2))
    assert (ground > 128) == (scheme == "light")


def test_the_page_asks_for_the_key_of_the_server(
    registered: Registered, browser: Browser, file: Path
) -> None:
    env = registered.workspace.env | {"NUSWIDE_API_KEY": KEY}
    with serving(registered.workspace.folder, env) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.wait_for_text("#status", "requires an API key")
        browser.type("#key", "a-wrong-key-of-some-length\n")
        browser.wait_for_text("#status", "key is wrong")
        browser.execute_script("document.getElementById('key').value = ''")
        browser.type("#key", KEY + "\n")
        browser.wait_for_text("#status", "No photo yet.")
        browser.type("#file", str(file))
        browser.wait_for_text("#status", f"for {file.name}")
        assert KEY not in server.output.read_text()
