import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from nuswide.reporting.plots import fonts, label_distribution, picture_sheet, to_image

CIRCLED = "Ⓐ label"  # STIXGeneral has it, which matplotlib brings along, but DejaVu Sans does not
CHINESE = "日本 label"


@pytest.fixture(autouse=True)
def only_matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    for cached in (fonts._fonts_with, fonts._say_once):
        cached.cache_clear()
    yield
    fonts._fonts_with.cache_clear()


def families(figure: Figure, words: str) -> set[tuple[str, ...]]:
    """Return the fonts of the texts with these words; a tick has two."""
    texts = (text for text in figure.findobj(Text) if isinstance(text, Text))
    return {tuple(text.get_fontfamily()) for text in texts if words in text.get_text()}


def drawn(label: str) -> list[tuple[Figure, str]]:
    """Draw the label at a tick and in a caption; return the figures with their warnings."""
    image = np.zeros((3, 8, 8), np.uint8)
    counts = {"train": np.array([3, 2], dtype=np.int64)}
    figures = [
        label_distribution((label, "plain"), counts),
        picture_sheet([image, image], [label, "plain"]),
    ]
    found = []
    for figure in figures:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            to_image(figure)
        found.append((figure, " ".join(str(warning.message) for warning in caught)))
    return found


def test_a_label_that_the_default_font_lacks_gets_an_installed_font_that_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for figure, warned in drawn(CIRCLED):
        assert families(figure, CIRCLED) == {("sans-serif", "STIXGeneral")}
        assert families(figure, "plain") == {("sans-serif",)}
        assert not warned
    assert not caplog.text


def test_characters_that_no_font_has_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for figure, warned in drawn(CHINESE + CIRCLED):
        assert families(figure, CHINESE) == {("sans-serif", "STIXGeneral")}
        assert not warned
    assert caplog.text.count("fonts-noto-cjk") == 1
