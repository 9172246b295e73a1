"""The comparison as one page that needs no network.

Owns its order and its words. Computes no statistic and draws nothing.

    html = to_html(comparison, draw_all(comparison))
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from nuswide.evaluation.compare import tables
from nuswide.evaluation.compare.entrants import COSTS, Entrant
from nuswide.evaluation.compare.figures import MOST_DETAILED, MOST_ENTRANTS, top_labels
from nuswide.evaluation.compare.paired import FIGURES, Comparison, Result
from nuswide.evaluation.compare.tables import MARKS
from nuswide.evaluation.evaluate import HEADLINE
from nuswide.reporting import html

_LISTED = 10  # labels in a table, and entrants among the findings
_STYLE = """<style>
:root { --worse: #fcebdd }
@media screen and (prefers-color-scheme: dark) { :root { --worse: #4f3017 } }
td, th[scope=row] { white-space: nowrap; vertical-align: top; font-variant-numeric: tabular-nums }
th[scope=row] { position: sticky; left: 0; background: var(--page); max-width: 16rem;
white-space: normal; overflow-wrap: break-word }
thead th { max-width: 16rem; white-space: normal }
td small { display: block; color: var(--faint); font-weight: normal }
td.better { background: var(--mark); font-weight: bold }
td.worse { background: var(--worse); font-weight: bold }
ul { padding-left: 1.2rem }
.panels { display: grid; gap: 0 1.5rem; align-items: start;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
.panels > div { min-width: 0 } .panels .chart img { min-width: 0 }
@media (max-width: 40rem) {
body { margin: 1rem } th, td { padding: .25rem .5rem } th[scope=row] { max-width: 7.5rem }
td, th[scope=row] { font-size: 14px }
}
@media print {
h2, p:has(+ .panels) { break-after: avoid } tr, img { break-inside: avoid }
td { print-color-adjust: exact }
.panels { grid-template-columns: 1fr 1fr } table { font-size: 11px } th, td { padding: .2rem .4rem }
}
</style>"""


def to_html(comparison: Comparison, drawn: Mapping[str, Image.Image]) -> str:
    """Write the page. drawn: kind/what -> picture."""
    title = f"{len(comparison.entrants)} taggers compared on test"
    parts = [_STYLE, html.paragraph(tables.introduction(comparison)), _findings(comparison)]
    if any(result.differences for result in comparison.results):
        parts += [
            html.heading("Differences from the baseline"),
            html.paragraph(f"With 95 % intervals. {tables.LEGEND}"),
            _panels(drawn, "differences"), _differences(comparison),
        ]  # fmt: skip
    parts += [
        html.heading("Figures on test"),
        html.paragraph(
            "With 95 % intervals; ± is the standard deviation between seeds, and small rings are "
            "the seeds. The baseline is first, the others follow by their mAP on val."
        ),
        _panels(drawn, "figures"),
        _figures(comparison),
        *_labels(comparison, drawn),
        html.heading("What differs in their params"),
        _params(comparison.entrants),
    ]
    if any(name.startswith("curves/") for name in drawn):
        parts += [
            html.heading("Learning curves"),
            html.paragraph("A line for each run. Loss and mAP on val while training."),
            _panels(drawn, "curves"),
        ]
    if costs := [key for key in COSTS if any(e.values(key) for e in comparison.entrants)]:
        parts += [
            html.heading("Quality and cost"),
            _panels(drawn, "cost"), _costs(costs, comparison.entrants),
        ]  # fmt: skip
    parts += [html.heading("How to read this"), *map(html.paragraph, _reading(comparison))]
    return html.page(title, *parts)


def _findings(comparison: Comparison) -> str:
    """What can be said of each entrant, in a sentence; then what must be known."""
    said = [
        _finding(entrant.name, result)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        if result.differences
    ]
    more = [f"{len(said) - _LISTED} more are in the tables."] if len(said) > _LISTED else []
    remarks = map(escape, comparison.remarks)
    items = "".join(f"<li>{text}</li>" for text in (*said[:_LISTED], *more, *remarks))
    return f"<ul>{items}</ul>"


def _finding(name: str, result: Result) -> str:
    """`B: worse in map −0.064 [−0.094, −0.037]; no difference shown in micro/f1.` and so on."""
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in MARKS}
    for figure in HEADLINE:
        compared = (result.differences or {})[figure]
        by_verdict[compared.verdict].append(f"{figure} {tables.difference_text(compared)}")
    words = {
        "better": "better than the baseline in", "worse": "worse than the baseline in",
        "tie": "no difference shown in", "unknown": "too few positives for",
    }  # fmt: skip
    sides = [f"{words[v]} {', '.join(found)}" for v, found in by_verdict.items() if found]
    return f"<b>{escape(name)}</b>: {escape('; '.join(sides))}."


def _panels(drawn: Mapping[str, Image.Image], kind: str) -> str:
    """The drawings of a kind, side by side where there is room."""
    own = {name: image for name, image in drawn.items() if name.startswith(f"{kind}/")}
    pictures = (html.picture(image, name.replace("/", " ")) for name, image in own.items())
    return f"<div class=panels>{''.join(f'<div>{picture}</div>' for picture in pictures)}</div>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markup already; a cell may bring its own <td ...>."""
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        f"<tr><th scope=row>{row[0]}</th>"
        + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f"<div class=wide>{whole}</div>"


def _two_lines(text: str) -> str:
    """The value, and its interval below."""
    value, bracket, interval = text.partition(" [")
    return f"{value}<small>[{interval}</small>" if bracket else value


def _figures(comparison: Comparison) -> str:
    rows = []
    for entrant, result in zip(comparison.entrants, comparison.results, strict=True):
        cells = [_two_lines(tables.estimate_text(result.estimates.get(name))) for name in FIGURES]
        is_baseline = entrant.name == comparison.baseline
        name = escape(entrant.name) + (" <small>(baseline)</small>" if is_baseline else "")
        rows.append([name, str(len(entrant.runs)), *cells])
    for name, values in tables.trivial(comparison).items():
        rows.append([name, "", *(f"{values[f]:.3f}" if f in values else "" for f in FIGURES)])
    return _table(("", "runs", *FIGURES), rows)


def _differences(comparison: Comparison) -> str:
    rows = []
    for entrant, result in zip(comparison.entrants, comparison.results, strict=True):
        cells = []
        for compared in (result.differences or {}).values():
            text = f"{MARKS[compared.verdict]} {tables.difference_text(compared)}"
            p = escape(tables.p_text(compared.corrected))
            cells.append(
                f"<td class={compared.verdict}>{_two_lines(text)}<small>p {p}</small></td>"
            )
        if cells:
            rows.append([escape(entrant.name), *cells])
    return _table(("", *FIGURES), rows)


def _labels(comparison: Comparison, drawn: Mapping[str, Image.Image]) -> list[str]:
    """The labels that differ most, for the first entrants: a drawing and a table each."""
    pairs = zip(comparison.entrants, comparison.results, strict=True)
    shown = [(entrant.name, result.labels) for entrant, result in pairs if result.labels]
    if not shown:
        return []
    parts = [
        html.heading("Differences by label"),
        html.paragraph(
            "Average precision less the baseline's; in brackets the label's positives on test. "
            "P-values are corrected for all labels together. Shown are the greatest differences, "
            "and the greatest are so partly by chance; all are in labels.csv."
        ),
    ]
    words = {"better": "better", "worse": "worse", "tie": "with no difference shown",
             "unknown": "with too few positives to say"}  # fmt: skip
    for place, (name, found) in enumerate(shown[:MOST_DETAILED], start=1):
        counts = [f"{sum(c.verdict == v for c in found)} {word}" for v, word in words.items()]
        rows = [
            [
                escape(label), str(positives),
                f"<td class={c.verdict}>{MARKS[c.verdict]} "
                f"{_two_lines(tables.difference_text(c))}</td>",
                *(escape(tables.p_text(p)) for p in (c.p_value, c.corrected)),
            ]
            for label, positives, c in top_labels(comparison, found, _LISTED)
        ]  # fmt: skip
        picture = html.picture(drawn[f"labels/{place}"], f"Differences by label of {name}")
        table = _table(("label", "positives", "difference", "p", "p by Holm"), rows)
        parts += [
            html.paragraph(f"{name}: of {len(found)} labels {', '.join(counts)}."),
            f"<div class=panels><div>{picture}</div><div>{table}</div></div>",
        ]
    return parts


def _params(entrants: Sequence[Entrant]) -> str:
    differing = tables.params(entrants)
    if not differing.rows:
        return html.paragraph("Nothing.")
    rows = ([escape(str(cell)) for cell in row] for row in differing.rows)
    return _table(("", *differing.columns[1:]), rows)


def _costs(keys: Sequence[str], entrants: Sequence[Entrant]) -> str:
    rows = [
        [escape(e.name), *(f"{m:,.0f}" if (m := e.mean(k)) is not None else "" for k in keys)]
        for e in entrants
    ]
    return _table(("", *keys), rows)


def _reading(comparison: Comparison) -> list[str]:
    texts = [
        "Intervals come from random halves of the test images (the delete-half jackknife), the "
        "same halves for all, so that differences are paired image by image. Average precision is "
        "too high where positives are few; intervals are corrected for that, figures are not, so "
        "that a figure can lie near the upper end of its interval.",
        "Where both sides have several seeds, the variance between seeds is in the interval of "
        "their difference, which then is about the recipes; otherwise it is about these models.",
        "A difference that is not shown may still be there: = does not mean equal.",
        "Test is for the report. To choose among these, use val (`promote` does).",
    ]
    if len(comparison.entrants) > MOST_ENTRANTS:
        texts.append(f"Drawings have the first {MOST_ENTRANTS}, tables and CSV files all.")
    return texts
