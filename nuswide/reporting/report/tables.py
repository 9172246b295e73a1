"""The tables of a report.

Owns what is in them and in what order. Never draws.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nuswide.data.manifest import Manifest
from nuswide.metrics import (
    HEADLINE,
    METRICS,
    Z_95,
    Metrics,
    Predictions,
    all_metrics,
    per_label_table,
)
from nuswide.metrics.calibration import BINS, bin_sums
from nuswide.metrics.predictions import Bools
from nuswide.reporting.report.entries import Confusions, Entry
from nuswide.reporting.report.inputs import Part, ReportInputs, Sample
from nuswide.reporting.table import Table, make_table, table_of

_MEANINGS = {
    "map": "mean over the labels of their average precision",
    "micro/ap": "average precision of all labels' entries in one ranking",
    "micro/f1": "F1 of all entries together",
    "macro/f1": "mean of the labels' F1",
    "macro/f1_with_positives": "the same, of the labels that have a positive",
    "samples/f1": "mean of the images' F1",
    "cf1": "harmonic mean of the labels' mean precision and mean recall",
    "of1": "as micro/f1, by its name beside cf1",
    "lrap": "how far up an image's own labels are in its ranking",
}
_DECISIONS = (
    "precision_recall_f1",
    "f1_with_positives",
    "six",
    "hamming_loss",
)  # of METRICS, these need no ranking
_AT_THRESHOLDS = (
    "micro/f1", "micro/precision", "micro/recall", "macro/f1", "macro/f1_with_positives",
    "macro/precision", "macro/recall", "samples/f1", "cf1", "hamming_loss",
)  # fmt: skip
_PAIRS = 25  # confusions in theirs


def metrics_of(sample: Sample) -> Metrics:
    """Return the metrics of the inputs, or else those of the sample."""
    if sample.inputs.metrics is not None:
        return sample.inputs.metrics
    s = sample.predictions
    return all_metrics(
        s.targets, s.scores, s.thresholds, s.known, train_positives=s.train_positives
    )


def headline(inputs: ReportInputs, metrics: Metrics) -> Table:
    """Return each headline metric, its interval, and the baselines'; None if not defined."""
    names = [name for name in HEADLINE if name in metrics]
    if metrics["labels_without_positives"]:
        names.insert(names.index("macro/f1") + 1, "macro/f1_with_positives")
    nothing = (np.nan, np.nan, np.nan)
    columns: dict[str, list[Any]] = {
        "metric": names, "value": _cells(metrics[name] for name in names),
    }  # fmt: skip
    for index, bound in ((1, "low"), (2, "high")):
        columns[bound] = _cells(inputs.intervals.get(name, nothing)[index] for name in names)
    for baseline, values in inputs.baselines.items():
        columns[baseline] = _cells(values.get(name, np.nan) for name in names)
    return table_of(columns | {"meaning": [_MEANINGS[name] for name in names]})


def two_thresholds(sample: Sample) -> Table:
    """Return metrics at the model's thresholds and at 0.5, side by side."""
    own, half = (
        _decision_metrics(predictions) for predictions in (sample.predictions, sample.at_half)
    )
    rows = [(name, own[name], half[name]) for name in _AT_THRESHOLDS]
    return make_table(("metric", "at its thresholds", "at 0.5"), rows)


def _decision_metrics(predictions: Predictions) -> Metrics:
    metrics: Metrics = {}
    for name in _DECISIONS:
        metrics |= METRICS[name](predictions)
    return metrics


def per_label(sample: Sample) -> Table:
    """Return each label's metrics, images in train and F1 at 0.5; frequent labels first."""
    labels, predictions = sample.inputs.labels, sample.predictions
    table = per_label_table(
        labels, predictions.targets, predictions.scores, predictions.thresholds, predictions.known
    )
    half = _f1(sample.at_half)
    index = {label: i for i, label in enumerate(labels)}
    order = [index[label] for label in table["label"]]
    table["f1 at 0.5"] = [round(float(half[i]), 4) for i in order]
    table["in train"] = [int(sample.inputs.train_positives[i]) for i in order]
    return table_of(table)


def _f1(predictions: Predictions) -> Any:
    hits = (predictions.predicted & predictions.true).sum(axis=0)
    return (
        2 * hits / np.maximum(predictions.predicted.sum(axis=0) + predictions.true.sum(axis=0), 1)
    )


def confusions(inputs: ReportInputs, found: Confusions) -> Table:
    """Return the most frequent pairs of a missed and a wrong label in the same image."""
    order = np.argsort(-found.images, axis=None, kind="stable")[:_PAIRS]
    pairs = [
        (int(r), int(c))
        for r, c in zip(*np.unravel_index(order, found.images.shape), strict=True)
        if found.images[r, c]
    ]
    titles = ("missed", "predicted instead", "images", "share of the missed", "share of all images")
    rows = [
        (
            inputs.labels[found.missed[r]], inputs.labels[found.wrong[c]],
            int(found.images[r, c]), float(found.images[r, c] / found.missed_images[r]),
            float(found.wrong_images[c] / found.n_images),
        )
        for r, c in pairs
    ]  # fmt: skip
    return make_table(titles, rows)


def labels_of(labels: tuple[str, ...], chosen: Bools) -> str:
    """Return the names of the chosen labels in one text."""
    return "; ".join(labels[i] for i in np.flatnonzero(chosen))


def pictured(inputs: ReportInputs, groups: Mapping[str, list[Entry]]) -> Table:
    """Return the entries in the galleries of mistakes and hits. groups: kind -> its entries."""
    samples, labels = inputs.data.manifest, inputs.labels
    rows = []
    for kind, entries in groups.items():
        for entry in entries:
            scores = inputs.scores[entry.image]
            rows.append((
                kind, samples.names[entry.image], labels[entry.label], float(scores[entry.label]),
                float(inputs.thresholds[entry.label]),
                labels_of(labels, samples.targets[entry.image] > 0),
                labels_of(labels, predicted_of(samples, scores, inputs.thresholds, entry.image)),
            ))  # fmt: skip
    titles = ("kind", "image", "label", "score", "threshold", "true", "predicted")
    return make_table(titles, rows)


def predicted_of(samples: Manifest, scores: Any, thresholds: Any, image: int) -> Bools:
    """Return which known labels of an image are predicted; (C,)."""
    predicted = np.asarray(scores >= thresholds)
    return predicted if samples.known is None else predicted & samples.known[image]


def suspects(part: Part, ranked: list[Entry], label_ap: Any) -> Table:
    """Return the entries whose label and score are furthest apart, with reasons."""
    samples = part.data.manifest
    targets = [int(samples.targets[e.image, e.label]) for e in ranked]
    scores = [float(part.scores[e.image, e.label]) for e in ranked]
    aps = [label_ap[e.label] for e in ranked]
    return table_of(
        {
            "rank": list(range(1, len(ranked) + 1)),
            "image": [samples.names[e.image] for e in ranked],
            "label": [samples.labels[e.label] for e in ranked],
            "labelled": ["yes" if target else "no" for target in targets],
            "score": scores,
            "distance": [abs(t - s) for t, s in zip(targets, scores, strict=True)],
            "AP of the label": [None if np.isnan(ap) else float(ap) for ap in aps],
            "reason": [reason(*evidence) for evidence in zip(targets, aps, strict=True)],
        }
    )


def reason(target: int, ap: float) -> str:
    """Describe the suspicion, and how far to trust the model on this label."""
    said = "may not be there" if target else "may be missing"
    if np.isnan(ap):
        return f"{said}; the model is untested on this label"
    trust = "good" if ap >= 0.7 else "fair" if ap >= 0.4 else "weak"
    return f"{said}; the model is {trust} at it (AP {ap:.2f})"


def calibration(predictions: Predictions) -> Table:
    """Return bins of equal width over all known entries: count, mean score, share of positives.

    The interval is Wilson's, as if entries were independent; a bin without entries has none.
    """
    counts, score_sums, positives = (sums.sum(axis=0) for sums in bin_sums(predictions))
    n = np.where(counts, counts, np.nan)
    share = positives / n
    middle = (share + Z_95**2 / 2 / n) / (1 + Z_95**2 / n)
    half = Z_95 * np.sqrt(share * (1 - share) / n + Z_95**2 / 4 / n**2) / (1 + Z_95**2 / n)
    edges = np.linspace(0, 1, BINS + 1)
    return table_of({
        "from": edges[:-1].tolist(), "to": edges[1:].tolist(),
        "entries": counts.astype(int).tolist(),
        "mean score": _cells(score_sums / n), "share true": _cells(share),
        "low": _cells(middle - half), "high": _cells(np.minimum(middle + half, 1)),
    })  # fmt: skip


def _cells(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
