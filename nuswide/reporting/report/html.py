"""A report as one page.

Owns the order of the sections, their headings and their words. Computes nothing.
"""

from collections.abc import Sequence

from nuswide.reporting import html
from nuswide.reporting.report.galleries import Card
from nuswide.reporting.report.make import Report
from nuswide.reporting.table import table_of
from nuswide.reporting.table import to_html as table_html

_MOST_ROWS = 500  # of a table; a page of thousands would be slow to open and to sort
_PICTURES = (
    "Images are shown as the model sees them, in its square input. Each group shows an "
    "image once, and a label at most twice if there are many. Some of the mistakes are errors of "
    "the labels, not of the model."
)


def to_html(report: Report) -> str:
    """Write the report as one page that needs no network, and scripts only to sort tables."""
    sections = {
        "In short": _short(report),
        "Thresholds": _thresholds(report),
        "Label by label": _per_label(report),
        "Labels and their frequency": [_drawn(report, "ap_by_frequency"),
                                       _drawn(report, "label_distribution")],
        "Precision and recall": [_drawn(report, "precision_recall")],
        "Scores": [_drawn(report, "score_histograms")],
        "Calibration": [_drawn(report, "calibration")],
        "Labels taken for others": _confusions(report),
        "Surest mistakes": _mistakes(report),
        "Best hits": _hits(report),
        "Labels that may be wrong": _suspects(report),
        "Speed and cost": _costs(report),
        "How it was made": _facts(report),
    }  # fmt: skip
    shown = {title: [part for part in parts if part] for title, parts in sections.items()}
    shown = {title: parts for title, parts in shown.items() if parts}
    body = [part for title, parts in shown.items() for part in (html.heading(title), *parts)]
    return html.page(report.title, html.contents(shown), *body)


def _short(report: Report) -> list[str]:
    return [
        html.points(report.findings),
        _drawn(report, "headline"),
        table_html(report.tables["headline"], caption="Headline metrics, with 95 % intervals"),
    ]


def _thresholds(report: Report) -> list[str]:
    return [
        html.paragraph(
            "The same scores at the model's thresholds and at 0.5. Thresholds that were fitted on "
            "these images would be too favourable."
        ),
        _table(report, "thresholds", "Metrics at the model's thresholds and at 0.5"),
    ]


def _per_label(report: Report) -> list[str]:
    wanted = {
        "label": "label", "ap": "AP", "f1": "F1", "precision": "precision", "recall": "recall",
        "support": f"images in {report.split}", "in train": "images in train",
        "threshold": "threshold", "f1 at 0.5": "F1 at 0.5",
    }  # fmt: skip
    table = table_of({head: report.tables["per_label"][name] for name, head in wanted.items()})
    n_labels = len(table.rows)
    cut = f", the {_MOST_ROWS} most frequent of {n_labels:,}" if n_labels > _MOST_ROWS else ""
    return [
        html.paragraph(
            "Precision, recall and F1 are at the label's threshold. A label without images has no "
            "AP (–)."
        ),
        table_html(
            table.first(_MOST_ROWS), caption=f"Metrics of each label{cut}", sortable=True,
            sorted_by=f"images in {report.split}",
        ),
    ]  # fmt: skip


def _confusions(report: Report) -> list[str]:
    if not report.tables["confusions"].rows:
        return [html.paragraph("In no image is one label missed and another predicted wrongly.")]
    return [
        _drawn(report, "co_confusion"),
        html.paragraph(
            "A pair is informative if its share of the missed is well above the share of all "
            "images in which the same label is predicted wrongly."
        ),
        _table(report, "confusions", "The most frequent pairs", sortable=True),
    ]


def _mistakes(report: Report) -> list[str]:
    return [
        html.paragraph(_PICTURES),
        html.subheading("Predicted, but not labelled; the highest score first"),
        _gallery(report.galleries["false_positives"], "No label is predicted wrongly."),
        html.subheading("Labelled, but not predicted; the lowest score first"),
        _gallery(report.galleries["misses"], "No label is missed."),
    ]


def _hits(report: Report) -> list[str]:
    return [
        html.paragraph(
            "The best tagged images: by their own F1, then by the number of labels found, then by "
            "the lowest score among these."
        ),
        _gallery(report.galleries["best_hits"], "No label is found in any image."),
    ]


def _suspects(report: Report) -> list[str]:
    if report.held_out is None:
        return []
    return [
        html.paragraph(
            f"Entries of {report.held_out}, which the model was not trained on, where label and "
            "score are furthest apart. These are suspicions: where the model is weak, the model is "
            "more likely to be wrong than the label."
        ),
        html.subheading("Perhaps missing: not labelled, but scored high"),
        _gallery(report.galleries["may_be_missing"], "None is scored above 0.5."),
        html.subheading("Perhaps wrong: labelled, but scored low"),
        _gallery(report.galleries["may_be_wrong"], "None is scored below 0.5."),
        html.subheading("Both, ranked by the distance of label and score"),
        _table(report, "suspects", "Suspected labels", sortable=True),
    ]


def _gallery(cards: Sequence[Card], if_none: str) -> str:
    if not cards:
        return html.paragraph(if_none)
    return html.gallery(html.photograph(card.image, card.alt, card.lines) for card in cards)


def _drawn(report: Report, name: str) -> str:
    if name not in report.plots:
        return ""
    plot = report.plots[name]
    return html.picture(plot.image, plot.alt, plot.caption)


def _table(report: Report, name: str, caption: str, sortable: bool = False) -> str:
    return table_html(report.tables[name].first(_MOST_ROWS), caption=caption, sortable=sortable)


def _costs(report: Report) -> list[str]:
    table = report.tables["costs"]
    return [table_html(table)] if table.rows else []


def _facts(report: Report) -> list[str]:
    facts = report.tables["facts"]
    return [html.definitions(dict(facts.rows))] if facts.rows else []
