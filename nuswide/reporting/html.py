"""Self-contained HTML pages: one look, no network, and every text escaped.

Owns the markup, its style and the script that sorts tables. Knows nothing of what the pages say.

    page("Comparison of runs", to_html(table), picture(image, "Bars of mAP"))
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence

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
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body, script=script)


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
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<script type=module>{_SCRIPT}</script>\n"
    )


# Columns of numbers sort descending first; missing values stay last either way.
_SCRIPT = """
const numberOf = text => text.trim() === "" ? NaN : Number(text.replaceAll(",", ""));
function compare(a, b, sign) {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return sign * a.localeCompare(b);
  if (Number.isNaN(x)) return 1;
  if (Number.isNaN(y)) return -1;
  return sign * (x - y);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows], text = row => row.cells[column].textContent;
      const first = rows.some(row => !Number.isNaN(numberOf(text(row)))) ? -1 : 1;
      const now = {ascending: 1, descending: -1}[head.getAttribute("aria-sort")];
      const sign = now ? -now : first;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.sort((a, b) => compare(text(a), text(b), sign)));
    });
  });
}
"""

_STYLE = """
:root { color-scheme: light dark; --text: #222; --faint: #595959; --page: #fff; --line: #d5d5d5;
  --mark: #e3f0fa; --link: #005a9e }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --faint: #ababab;
  --page: #16181b; --line: #3d4044; --mark: #1d3a52; --link: #7cc0f5 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1.25rem;
  color: var(--text); background: var(--page); max-width: 75rem; overflow-wrap: break-word }
h1 { line-height: 1.2 } h2 { margin-top: 2.8rem } h3 { margin-top: 1.8rem }
p, ul { max-width: 50rem }
a { color: var(--link) }
nav ol { columns: 15rem; max-width: 60rem; padding-left: 1.4rem }
.wide { overflow: auto; max-height: 40rem; width: fit-content; max-width: 100%;
  border: 1px solid var(--line); border-radius: 3px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--faint); padding: .4rem .8rem }
thead th { position: sticky; top: 0; background: var(--page); box-shadow: 0 1px var(--line);
  vertical-align: bottom; white-space: nowrap }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  overflow-wrap: normal }
th[scope=row], thead th:first-child, .words { text-align: left }
th[scope=row] { font-weight: normal }
th[scope=row], .words { max-width: 24rem; overflow-wrap: break-word } .long { min-width: 17rem;
  max-width: 34rem }
dl { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .3rem 1.2rem }
dt { color: var(--faint) } dd { margin: 0; overflow-wrap: anywhere }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0;
  cursor: pointer }
th button:hover { text-decoration: underline }
th button::after { content: " \\2195"; color: var(--faint) }
[aria-sort=ascending] button::after { content: " \\25B2" }
[aria-sort=descending] button::after { content: " \\25BC" }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
figure { margin: 1rem 0 }
.chart { overflow-x: auto } .chart img { min-width: 36rem }
figcaption { color: var(--faint); max-width: 50rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: 3px }
.gallery { display: grid; gap: 1.2rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
.gallery figure { margin: 0 } .gallery img { width: 100% }
.gallery figcaption { font-size: 13px; line-height: 1.35 }
.gallery strong { color: var(--text) }
@media screen and (max-width: 32rem) { body { margin: 1rem auto; padding: 0 .8rem }
  .gallery { gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) }
  th, td { padding: .25rem .5rem } .long { min-width: 11rem } }
@media print { body { margin: 0; font-size: 10pt; max-width: none }
  .wide { max-height: none; overflow: visible } thead th { position: static }
  .wide { border: 0 } .chart { overflow: visible } .chart img { min-width: 0 }
  th, td { padding: .15rem .4rem } th button::after { content: "" } nav { display: none }
  h2, h3, caption, thead, p:has(+ .gallery), p:has(+ .wide) { break-after: avoid }
  figure, tr { break-inside: avoid }
  .gallery { grid-template-columns: repeat(4, 1fr) } }
"""

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
