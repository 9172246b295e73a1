from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from PIL import Image
from selenium.webdriver.common.keys import Keys

from nuswide.reporting import html
from nuswide.reporting.table import make_table, to_html

HOSTILE = "<script>alert(1)</script>\"'&"


def drawn_at(dpi: float) -> Image.Image:
    image = Image.new("RGB", (520, 390), "white")
    image.info["dpi"] = (dpi, dpi)
    return image


def test_every_kind_of_text_is_escaped() -> None:
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    page = html.page(
        HOSTILE,
        html.contents([HOSTILE]),
        html.heading(HOSTILE),
        html.subheading(HOSTILE),
        html.paragraph(HOSTILE),
        html.points([HOSTILE]),
        html.definitions({HOSTILE: HOSTILE}),
        to_html(make_table([HOSTILE], [[HOSTILE]]), caption=HOSTILE),
        html.picture(drawn_at(100), HOSTILE, HOSTILE),
        html.gallery([html.photograph(image, HOSTILE, [HOSTILE, HOSTILE])]),
    )
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)") == 18


def test_contents_point_at_the_headings() -> None:
    names = ["In short", "Größe & Zahl"]
    page = html.contents(names) + "".join(map(html.heading, names))
    for anchor in ("in-short", "größe---zahl"):
        assert page.count(f'href="#{anchor}"') == page.count(f'id="{anchor}"') == 1


def test_columns_of_words_are_told_from_columns_of_numbers() -> None:
    rows = [["a", "1e-05", "7.jpg", "3 (4%)", "–"], ["b", "", "sky", "nan", "-0.5"]]
    page = to_html(make_table(["name", "lr", "image", "share", "ap"], rows))
    assert "<th scope=col class=words>image" in page and "<td class=words>7.jpg" in page
    assert "<td>1e-05" in page and "<td>3 (4%)" in page and "<td>–" in page


def test_only_a_page_with_a_sortable_table_has_a_script() -> None:
    plain = html.page("t", to_html(make_table(["a"], [["1"]])))
    assert "<script" not in plain and "Security-Policy" not in plain
    sortable = html.page("t", to_html(make_table(["a"], [["1"]]), sortable=True))
    assert sortable.count("<script") == 1 and "default-src 'none'" in sortable


def test_a_figure_and_a_photograph_carry_their_words() -> None:
    drawn = html.picture(drawn_at(130), "a falling line", "It falls.")
    assert drawn.startswith('<figure class=chart><img alt="a falling line" width=384 ')
    assert drawn.endswith("<figcaption>It falls.</figcaption></figure>")
    image = np.zeros((3, 500, 500), dtype=np.uint8)
    shown = html.photograph(image, "a black square", ["headline", "line"])
    assert "<strong>headline</strong><br>line" in shown and len(shown) < 4000


@pytest.fixture
def table_page() -> str:
    """Ordered by support, as the page says; one AP is missing."""
    rows = [
        ["sky", "0.9", "1,200"], ["ärmel", "–", "300"], ["boat", "0.10", "20"],
        ["Car", "0.2", "3"],
    ]  # fmt: skip
    table = to_html(make_table(["label", "AP", "n"], rows), sortable=True, sorted_by="n")
    return html.page("t", html.paragraph("above"), table)


FIRST_COLUMN = "[...document.querySelectorAll('tbody th')].map(e => e.textContent)"
SORTS = "[...document.querySelectorAll('thead th')].map(e => e.getAttribute('aria-sort'))"


def test_a_click_sorts_falling_then_rising_with_missing_values_last(
    tmp_path: Path, table_page: str, browser: Browser
) -> None:
    (tmp_path / "page.html").write_text(table_page, encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.ask(SORTS) == [None, None, "descending"]
    browser.click("thead th:nth-child(2) button")
    assert browser.ask(FIRST_COLUMN) == ["sky", "Car", "boat", "ärmel"]
    assert browser.ask(SORTS) == [None, "descending", None]
    browser.click("thead th:nth-child(2) button")
    assert browser.ask(FIRST_COLUMN) == ["boat", "Car", "sky", "ärmel"]
    assert browser.ask(SORTS) == [None, "ascending", None]
    browser.click("thead th:nth-child(3) button")  # 1,200 is a number
    assert browser.ask(FIRST_COLUMN) == ["sky", "ärmel", "boat", "Car"]
    browser.click("thead th:nth-child(1) button")  # words rise first
    assert browser.ask(FIRST_COLUMN) == ["ärmel", "boat", "Car", "sky"]
    assert browser.console() == []
    assert browser.requests() == [(tmp_path / "page.html").as_uri()]


def test_keys_alone_sort(tmp_path: Path, table_page: str, browser: Browser) -> None:
    (tmp_path / "page.html").write_text(table_page, encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    for _ in range(3):  # the region that scrolls, the first head, the second
        browser.press(Keys.TAB)
    assert browser.ask("document.activeElement.textContent") == "AP"
    browser.press(Keys.ENTER)
    assert browser.ask(FIRST_COLUMN) == ["sky", "Car", "boat", "ärmel"]
    browser.press(Keys.SPACE)
    assert browser.ask(FIRST_COLUMN) == ["boat", "Car", "sky", "ärmel"]
    assert browser.ask("document.activeElement.textContent") == "AP"


def test_without_scripts_the_table_is_there_and_offers_no_button(
    tmp_path: Path, table_page: str, browser: Browser
) -> None:
    (tmp_path / "page.html").write_text(table_page, encoding="utf-8")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.ask(FIRST_COLUMN) == ["sky", "ärmel", "boat", "Car"]
    assert browser.ask("document.querySelectorAll('button').length") == 0


def test_the_policy_lets_no_other_script_run(
    tmp_path: Path, table_page: str, browser: Browser
) -> None:
    script = "<script>document.title = 'x'</script>"
    hostile = table_page.replace("<p>above</p>", f"<p>above</p>{script}")
    (tmp_path / "page.html").write_text(hostile, encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.ask("document.title") == "t"
    assert any("Content Security Policy" in text for text in browser.console())
