"""The comparison as one self-contained HTML page.

Owns its order and its wording. Computes no statistic and draws no plot.
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
    """Return the page. drawn: kind/what -> image."""
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
            "With 95 % intervals; ± is the standard deviation over seeds, and small rings are the "
            "single seeds. The baseline comes first; the others are sorted by mAP on val."
        ),
        _panels(drawn, "figures"),
        table_html(tables.shown_results(comparison)),
        *_labels(comparison, drawn),
        html.heading("Differing parameters"),
        table_html(differing) if differing.rows else html.paragraph("Nothing."),
    ]
    if any(name.startswith("curves/") for name in drawn):
        parts += [
            html.heading("Learning curves"),
            html.paragraph("Loss and mAP on val during training, one line per run."),
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
    """Return a sentence for each entrant, then the remarks."""
    said = [
        _finding(entrant.name, result)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        if result.differences
    ]
    more = [f"The tables list {len(said) - _LISTED} more."] if len(said) > _LISTED else []
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
    """Return the plots of one kind, side by side where they fit."""
    own = {name: image for name, image in drawn.items() if name.startswith(f"{kind}/")}
    pictures = (html.picture(image, name.replace("/", " ")) for name, image in own.items())
    return f"<div class=panels>{''.join(f'<div>{picture}</div>' for picture in pictures)}</div>"


def _labels(comparison: Comparison, drawn: Mapping[str, Image.Image]) -> list[str]:
    """Return a plot and a table of the most different labels, for the first entrants."""
    pairs = zip(comparison.entrants, comparison.results, strict=True)
    shown = [(entrant.name, result.labels) for entrant, result in pairs if result.labels]
    if not shown:
        return []
    parts = [
        html.heading("Differences by label"),
        html.paragraph(
            "Average precision minus the baseline's; the label's test positives are in brackets. "
            "P-values are corrected over all labels. Only the largest differences are shown, and "
            "the largest are partly so by chance; labels.csv has all of them."
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
        "Intervals are computed from random halves of the test images (the delete-half "
        "jackknife), the same halves for every entrant, so that differences are paired image by "
        "image. Average precision is biased upwards where positives are few. Intervals are "
        "corrected for that bias and values are not, so a value can lie near the upper end of its "
        "interval.",
        "Where both sides have several seeds, the interval of their difference includes the "
        "variance over seeds: it is about the recipes. Otherwise it is about these models only.",
        "A difference that is not shown may still exist: = does not mean equal.",
        "Use test for reporting only. To choose a model, compare on val, as `nuswide promote` "
        "does.",
    ]
    if len(comparison.entrants) > MOST_ENTRANTS:
        texts.append(f"Plots show the first {MOST_ENTRANTS} entrants, tables and CSV files all.")
    return texts
