"""Self-contained HTML pages: one look, no network, and every text escaped.

Owns the markup, its style and the script that sorts tables. Knows nothing of what the pages say.

    >>> paragraph("R&B")
    '<p>R&amp;B</p>'
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COLOURS = 256  # of a plot, which is flat: half the size of all colours
_QUALITY = 82  # of a photograph
_SIDE_PX = 256  # of one at most


def page(title: str, *parts: str) -> str:
    """Return a whole page. parts: markup."""
    body = "\n".join(parts)
    script = _sorting() if "<table class=sortable>" in body else ""
    style = asset("page.css")
    return _PAGE.format(title=html.escape(title), style=style, body=body, script=script)


def asset(name: str) -> str:
    """Return the text of a style sheet or script beside this module."""
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def heading(text: str) -> str:
    """Return a section's heading, to which `contents` links."""
    return f'<h2 id="{_anchor(text)}">{html.escape(text)}</h2>'


def subheading(text: str) -> str:
    """Return a heading inside a section."""
    return f"<h3>{html.escape(text)}</h3>"


def contents(headings: Iterable[str]) -> str:
    """Return a table of contents with links to headings."""
    items = "".join(f'<li><a href="#{_anchor(h)}">{html.escape(h)}</a>' for h in headings)
    return f"<nav aria-label=Contents><ol>{items}</ol></nav>"


def _anchor(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def points(texts: Iterable[str]) -> str:
    """Return a list of plain texts."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}' for text in texts)}</ul>"


def definitions(values: Mapping[str, str]) -> str:
    """Return a list of names and values."""
    items = (f"<dt>{html.escape(k)}<dd>{html.escape(v)}" for k, v in values.items())
    return f"<dl>{''.join(items)}</dl>"


def picture(drawn: Image.Image, alt: str, caption: str = "") -> str:
    """Return a plot for the page. drawn: with its dpi in `info`."""
    png = io.BytesIO()
    flat = drawn.quantize(_COLOURS, dither=Image.Dither.NONE)
    flat.save(png, format="png", optimize=True)
    width = round(drawn.width * 96 / drawn.info["dpi"][0])  # CSS has 96 pixels an inch
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class=chart><img alt="{html.escape(alt)}" width={width} '
        f'src="data:image/png;base64,{_base64(png)}">{said}</figure>'
    )


def photograph(image: NDArray[np.uint8], alt: str, lines: Sequence[str]) -> str:
    """Return an image (3, H, W) with lines of text below it, the first of them in bold."""
    jpeg = io.BytesIO()
    shown = Image.fromarray(image.transpose(1, 2, 0))
    shown.thumbnail((_SIDE_PX, _SIDE_PX))
    shown.save(jpeg, format="jpeg", quality=_QUALITY, optimize=True)
    first, *rest = map(html.escape, lines)
    text = "<br>".join([f"<strong>{first}</strong>", *rest])
    return (
        f'<figure><img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{_base64(jpeg)}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def gallery(photographs: Iterable[str]) -> str:
    """Return photographs in rows that fill the width of the page."""
    return f"<div class=gallery>{''.join(photographs)}</div>"


def _base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()


def _sorting() -> str:
    """Return the script that sorts tables, under a policy that forbids everything else."""
    script = asset("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<script type=module>{script}</script>\n"
    )


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>{title}</title>
<meta name=viewport content="width=device-width">
{script}<style>{style}</style>
<main>
<h1>{title}</h1>
{body}
</main>
</html>
"""
