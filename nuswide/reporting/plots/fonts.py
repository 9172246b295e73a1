"""Fonts for texts in any script.

Owns which installed font draws the characters that the default font lacks.
"""

import logging
from functools import cache, lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

log = logging.getLogger(__name__)


def add_fonts(figure: Figure) -> None:
    """Add fonts to the texts of a figure whose own font lacks some of their characters.

    Characters that no installed font has are drawn as boxes, which is logged once.
    """
    for axis in figure.axes:  # the texts of ticks exist only after this
        axis.get_xticklabels(), axis.get_yticklabels()
    lacking = {text: found for text in figure.findobj(Text) if (found := _lacking(text))}
    if not lacking:
        return
    wanted = frozenset().union(*lacking.values())
    names = _fonts_with(wanted)
    for text in lacking:
        text.set_fontfamily([*text.get_fontfamily(), *names])


def _lacking(text: Text) -> frozenset[str]:
    written = text.get_text()
    if written.isascii():
        return frozenset()
    path = findfont(text.get_fontproperties())
    drawn = (c for c in set(written) if c.isprintable() and not c.isspace())
    return frozenset(c for c in drawn if not _has(path, c))


def _has(path: str, character: str) -> bool:
    return bool(get_font(path).get_char_index(ord(character)))


@lru_cache(maxsize=32)
def _fonts_with(characters: frozenset[str]) -> tuple[str, ...]:
    """Return the names of few fonts that have the characters together, as far as there are any."""
    has = {
        name: {c for c in characters if _has(path, c)} for name, path in sorted(_upright().items())
    }
    chosen: list[str] = []
    left = set(characters)
    while left:
        best = max(has, key=lambda name: len(has[name] & left))
        if not has[best] & left:
            _say_once()
            break
        chosen.append(best)
        left -= has[best]
    return tuple(chosen)


def _upright() -> dict[str, str]:
    """Return the installed fonts: name -> path. Last Resort has a box for every character."""
    fonts = (f for f in fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal"))
    return {f.name: f.fname for f in fonts if not f.name.startswith("Last Resort")}


@cache
def _say_once() -> None:
    log.warning(
        "Some characters of the plots are drawn as boxes, because no installed font has them; "
        "install one that does, such as fonts-noto-cjk for Chinese, Japanese and Korean"
    )
