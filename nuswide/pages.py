"""Self-contained HTML pages: one look, no network, and every text escaped.

Owns the markup. Knows nothing of what the tables and figures say.

    page("Comparison of runs", table(["run", "mAP"], rows), picture(figure, "Bars of mAP"))
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure


def page(title: str, *parts: str) -> str:
    """A whole page of parts that are markup already."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    best: Sequence[frozenset[int]] | None = None,
) -> str:
    """A table whose first column heads the rows; best: for each row the other columns to mark."""
    head = "".join(f"<th scope=col>{html.escape(column)}</th>" for column in columns)
    body = "\n".join(
        _row(row, best[place] if best else frozenset()) for place, row in enumerate(rows)
    )
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f"<div class=wide>{whole}</div>"


def _row(row: Sequence[str], best: frozenset[int]) -> str:
    first, *rest = row
    cells = (
        f"<td{' class=best' if i in best else ''}>{html.escape(cell)}</td>"
        for i, cell in enumerate(rest)
    )
    return f"<tr><th scope=row>{html.escape(first)}</th>{''.join(cells)}</tr>"


def picture(figure: Figure, alt: str) -> str:
    """A figure, drawn into the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>{title}</title>
<meta name=viewport content="width=device-width">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; max-width: 75rem }}
h2 {{ margin-top: 2.5rem }}
.wide {{ overflow-x: auto; max-height: 40rem; overflow-y: auto }}
table {{ border-collapse: collapse }}
thead th {{ position: sticky; top: 0; background: #fff }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
th[scope=row], thead th:first-child {{ text-align: left }}
th[scope=row] {{ font-weight: normal }}
.best {{ font-weight: bold; background: #e3f0fa }}
.best::after {{ content: " *" }}
img {{ max-width: 100%; margin-top: 1rem }}
@media print {{ .wide {{ max-height: none; overflow: visible }} }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
