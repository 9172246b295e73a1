"""The comparison as one page that needs no network.

Owns its order and its words. Computes no statistic and draws nothing.

    html = to_html(comparison, draw_all(comparison))
"""

from collections.abc import Mapping
from html import escape

from PIL import Image

from nuswide.evaluation.compare import tables
from nuswide.evaluation.compare.entrants import COSTS
from nuswide.evaluation.compare.paired import Comparison, Result
from nuswide.evaluation.compare.plots import MOST_DETAILED, MOST_ENTRANTS
from nuswide.evaluation.compare.tables import MARKS
from nuswide.evaluation.evaluate import SUMMARY
from nuswide.reporting import html
from nuswide.reporting.table import to_html as table_html

_LISTED = 10  # labels in a table, and entrants among the findings


def to_html(comparison: Comparison, drawn: Mapping[str, Image.Image]) -> str:
    """Write the page. drawn: kind/what -> picture."""
    differing = tables.params(comparison.entrants)
    title = f"{len(comparison.entrants)} taggers compared on test"
    style = f"<style>{html.asset('comparison.css')}</style>"
    parts = [style, html.paragraph(tables.introduction(comparison)), _findings(comparison)]
    if any(result.differences for result in comparison.results):
        parts += [
            html.heading("Differences from the baseline"),
            html.paragraph(f"With 95 % intervals. {tables.LEGEND}"),
            _panels(drawn, "differences"), table_html(tables.shown_differences(comparison)),
        ]  # fmt: skip
    parts += [
        html.heading("Metrics on test"),
        html.paragraph(
            "With 95 % intervals; ± is the standard deviation between seeds, and small rings are "
            "the seeds. The baseline is first, the others follow by their mAP on val."
        ),
        _panels(drawn, "figures"),
        table_html(tables.shown_results(comparison)),
        *_labels(comparison, drawn),
        html.heading("What differs in their params"),
        table_html(differing) if differing.rows else html.paragraph("Nothing."),
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
            _panels(drawn, "cost"), table_html(tables.shown_costs(costs, comparison.entrants)),
        ]  # fmt: skip
    parts += [html.heading("How to read this"), *map(html.paragraph, _reading(comparison))]
    return html.page(title, *parts)


def _findings(comparison: Comparison) -> str:
    """Write a sentence on each entrant, then the remarks."""
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
    for metric in SUMMARY:
        compared = (result.differences or {})[metric]
        by_verdict[compared.verdict].append(f"{metric} {tables.difference_text(compared)}")
    words = {
        "better": "better than the baseline in", "worse": "worse than the baseline in",
        "tie": "no difference shown in", "unknown": "too few positives for",
    }  # fmt: skip
    sides = [f"{words[v]} {', '.join(found)}" for v, found in by_verdict.items() if found]
    return f"<b>{escape(name)}</b>: {escape('; '.join(sides))}."


def _panels(drawn: Mapping[str, Image.Image], kind: str) -> str:
    """Return the plots of a kind, side by side where there is room."""
    own = {name: image for name, image in drawn.items() if name.startswith(f"{kind}/")}
    pictures = (html.picture(image, name.replace("/", " ")) for name, image in own.items())
    return f"<div class=panels>{''.join(f'<div>{picture}</div>' for picture in pictures)}</div>"


def _labels(comparison: Comparison, drawn: Mapping[str, Image.Image]) -> list[str]:
    """Return the labels that differ most, for the first entrants: a plot and a table each."""
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
    for number, (name, found) in enumerate(shown[:MOST_DETAILED], start=1):
        counts = [f"{sum(c.verdict == v for c in found)} {word}" for v, word in words.items()]
        picture = html.picture(drawn[f"labels/{number}"], f"Differences by label of {name}")
        table = table_html(tables.shown_labels(comparison, found, _LISTED))
        parts += [
            html.paragraph(f"{name}: of {len(found)} labels {', '.join(counts)}."),
            f"<div class=panels><div>{picture}</div><div>{table}</div></div>",
        ]
    return parts


def _reading(comparison: Comparison) -> list[str]:
    texts = [
        "Intervals come from random halves of the test images (the delete-half jackknife), the "
        "same halves for all, so that differences are paired image by image. Average precision is "
        "too high where positives are few; intervals are corrected for that, values are not, so "
        "that a value can lie near the upper end of its interval.",
        "Where both sides have several seeds, the variance between seeds is in the interval of "
        "their difference, which then is about the recipes; otherwise it is about these models.",
        "A difference that is not shown may still be there: = does not mean equal.",
        "Test is for the report. To choose among these, use val (`promote` does).",
    ]
    if len(comparison.entrants) > MOST_ENTRANTS:
        texts.append(f"Drawings have the first {MOST_ENTRANTS}, tables and CSV files all.")
    return texts
