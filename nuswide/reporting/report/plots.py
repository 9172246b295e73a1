"""The plots of a report: from a sample's scores to arrays, and from these to plots.

Owns which labels are shown, and the texts for readers who cannot see a plot.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from nuswide.core.wording import counted
from nuswide.metrics import Predictions
from nuswide.metrics.predictions import Bools, Curve, Ints, Scores
from nuswide.metrics.ranking import FEW, MANY, average_precision
from nuswide.reporting import plots
from nuswide.reporting.report.entries import Confusions
from nuswide.reporting.report.inputs import Sample
from nuswide.reporting.table import Table

_MOST_BARS = 40  # labels in the distribution
_PANELS = 11  # labels with curves of their own, beside all labels together
_POINTS = 400  # of a drawn curve
_HISTOGRAM_BINS = 20
_HEAT = 24  # rows and columns of the heat map


@dataclass(frozen=True)
class Plot:
    """A plot, a description of it, and a caption that says how to read it."""

    drawn: plots.Figure
    alt: str
    caption: str

    @cached_property
    def image(self) -> Image.Image:
        """Its pixels, drawn once for the page and the file."""
        return plots.to_image(self.drawn)


def make_plots(sample: Sample, tables: dict[str, Table], confusions: Confusions) -> dict[str, Plot]:
    """Make every plot that there is something to show for; name -> plot."""
    rising = sample.predictions.true.any()  # without a positive no curve rises
    made = {
        "headline": _headline(tables["headline"], sample.inputs.baselines),
        "label_distribution": _distribution(sample),
        "ap_by_frequency": _by_frequency(tables["per_label"]) if rising else None,
        "precision_recall": _precision_recall(sample) if rising else None,
        "score_histograms": _histograms(sample),
        "calibration": _calibration(tables["calibration"]),
        "co_confusion": _confusion(sample.inputs.labels, confusions),
    }
    return {name: plot for name, plot in made.items() if plot is not None}


def _headline(table: Table, baselines: Any) -> Plot:
    rows = zip(*(table[name] for name in ("metric", "value", "low", "high")), strict=True)
    # Without an interval the value stands alone.
    intervals = {
        name: (value, value if low is None else low, value if high is None else high)
        for name, value, low, high in rows
        if value is not None
    }
    said = ", ".join(f"{name} {value:.3f}" for name, (value, _, _) in intervals.items())
    return Plot(
        plots.interval_dots(intervals, baselines),
        f"Dots of the model's metrics, beside those of the trivial taggers: {said}.",
        "Bars: 95 % intervals, over other images of the same kind. Open signs: trivial taggers, "
        "which know nothing of the picture.",
    )


def _distribution(sample: Sample) -> Plot:
    inputs = sample.inputs
    positives = {
        "train": inputs.train_positives,
        inputs.split: sample.predictions.true.sum(axis=0),
    }
    most = inputs.train_positives.argmax()
    shown = min(_MOST_BARS, len(inputs.labels))
    cut = "" if shown == len(inputs.labels) else f" The {shown} most frequent are shown."
    return Plot(
        plots.label_distribution(inputs.labels, positives, _MOST_BARS),
        f"Bars of the images with each label in train and {inputs.split}, from "
        f"{inputs.labels[most]} with {inputs.train_positives[most]:,} in train downwards.",
        f"Images with each label.{cut}",
    )


def _by_frequency(table: Table) -> Plot:
    kept = [i for i, ap in enumerate(table["ap"]) if ap is not None]
    names = [table["label"][i] for i in kept]
    positives = np.array([table["in train"][i] for i in kept])
    precision = np.array([table["ap"][i] for i in kept], dtype=np.float64)
    many, few = positives > MANY, positives < FEW
    groups = {f"fewer than {FEW}": few, f"{FEW} to {MANY}": ~few & ~many, f"over {MANY}": many}
    means = "; ".join(
        f"{counted(chosen.sum(), 'label')} with {name} images in train: "
        f"mean AP {precision[chosen].mean():.2f}"
        for name, chosen in groups.items()
        if chosen.any()
    )
    return Plot(
        plots.precision_by_frequency(names, positives, precision, (FEW, MANY)),
        f"A dot a label, its average precision over its images in train. {means}.",
        f"{means}. The dotted lines part them. Some of the best and worst are named.",
    )


def _shown_labels(predictions: Predictions) -> Ints:
    """Return the labels with curves of their own: the most frequent that have a positive."""
    support = predictions.true.sum(axis=0)
    order = np.argsort(-support, kind="stable")[:_PANELS]
    return order[support[order] > 0]


def _precision_recall(sample: Sample) -> Plot:
    predictions, half = sample.predictions, sample.at_half
    shown = _shown_labels(predictions)
    panels = [
        _panel(sample.inputs.labels[i], predictions.curves[i], predictions.true[:, [i]],
               {"at its threshold": predictions.predicted[:, [i]],
                "at 0.5": half.predicted[:, [i]]})
        for i in shown
    ]  # fmt: skip
    if len(sample.inputs.labels) > 1:
        points = {"at its threshold": predictions.predicted, "at 0.5": half.predicted}
        panels.insert(
            0, _panel("all labels together", predictions.pooled, predictions.true, points)
        )
    aps = np.array([average_precision(predictions.curves[i]) for i in shown])
    best, worst = (sample.inputs.labels[shown[i]] for i in (aps.argmax(), aps.argmin()))
    return Plot(
        plots.precision_recall(panels),
        f"Precision over recall of the {len(shown)} most frequent labels. Average precision goes "
        f"from {aps.min():.2f} ({worst}) to {aps.max():.2f} ({best}).",
        "All labels' entries in one ranking first, then the most frequent labels. AP: average "
        "precision; n: images with the label.",
    )


def _panel(
    name: str, curve: Curve, true: Bools, predicted: dict[str, Bools]
) -> plots.PrecisionRecall:
    kept = np.unique(np.linspace(0, len(curve.hits) - 1, _POINTS).astype(int))
    title = f"{_short(name)}\nAP {average_precision(curve):.2f}, n {curve.positives:,}"
    recall, precision = curve.hits / curve.positives, curve.hits / curve.predicted
    points = {}
    for where, chosen in predicted.items():
        hits = int((chosen & true).sum())
        if chosen.any():  # precision is not defined where nothing is predicted
            points[where] = (hits / curve.positives, hits / int(chosen.sum()))
        else:
            points[where] = (np.nan, np.nan)
    share = curve.positives / int(curve.predicted[-1])
    return plots.PrecisionRecall(title, recall[kept], precision[kept], share, points)


def _histograms(sample: Sample) -> Plot:
    predictions, labels = sample.predictions, sample.inputs.labels
    known = np.ones_like(predictions.true) if predictions.known is None else predictions.known
    shown = _shown_labels(predictions)
    panels = [
        _histogram(labels[i], predictions.scores[:, i], predictions.true[:, i], known[:, i],
                   float(sample.inputs.thresholds[i]))
        for i in shown
    ]  # fmt: skip
    if len(labels) > 1 or not panels:
        panels.insert(
            0, _histogram("all labels together", predictions.scores, predictions.true, known, None)
        )
    means = [
        f"{predictions.scores[chosen].mean():.2f}" if chosen.any() else "none"
        for chosen in (predictions.true, known & ~predictions.true)
    ]
    return Plot(
        plots.score_histograms(panels),
        f"Histograms of scores. Over all labels the mean score of positives is {means[0]}, that of "
        f"negatives {means[1]}.",
        "Filled: images that have the label; hatched: those that lack it; each adds up to 100 %, "
        "on a scale that is logarithmic above 1 %.",
    )


def _histogram(
    name: str, scores: Scores, true: Bools, known: Bools, threshold: float | None
) -> plots.Histogram:
    shares = []
    for chosen in (true, known & ~true):
        counts = np.histogram(scores[chosen], _HISTOGRAM_BINS, (0, 1))[0]
        shares.append(counts / max(1, counts.sum()))
    title = f"{_short(name)}\n{int(true.sum()):,} have it of {int(known.sum()):,}"
    return plots.Histogram(title, shares[0], shares[1], threshold)


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _calibration(table: Table) -> Plot:
    columns = {
        name: np.array([np.nan if v is None else v for v in table[name]])
        for name in ("mean score", "share true", "low", "high")
    }
    counts = np.array(table["entries"])
    largest = int(counts.argmax())
    return Plot(
        plots.reliability(
            columns["mean score"], columns["share true"], columns["low"], columns["high"], counts
        ),
        f"The share of entries that is true over their score, in {len(counts)} bins. The bin with "
        f"most entries, {counts[largest]:,}, has a mean score of "
        f"{columns['mean score'][largest]:.3f} and a share of "
        f"{columns['share true'][largest]:.3f}.",
        "All labels' entries together. On the dotted line a score of 0.3 is right in 30 % of "
        "cases; below it the model is too sure. The bars count the entries of each bin.",
    )


def _confusion(labels: tuple[str, ...], found: Confusions) -> Plot | None:
    """Plot the most frequent pairs; None if no two labels are confused."""
    if not found.images.any():
        return None
    rows = np.sort(np.argsort(-found.images.max(axis=1), kind="stable")[:_HEAT])
    columns = np.sort(np.argsort(-found.images[rows].max(axis=0), kind="stable")[:_HEAT])
    images = found.images[np.ix_(rows, columns)]
    r, c = np.unravel_index(images.argmax(), images.shape)
    missed = [labels[i] for i in found.missed[rows]]
    wrong = [labels[i] for i in found.wrong[columns]]
    return Plot(
        plots.co_confusion(missed, wrong, images, found.missed_images[rows]),
        f"Heat map of {len(missed)} missed by {len(wrong)} wrongly predicted labels. Most "
        f"frequent: {wrong[c]} where {missed[r]} is missed, in {counted(images[r, c], 'image')}.",
        "Of the images in which the row's label is true but missed, how many have the column's "
        "label wrongly predicted. The number in a cell counts images, its shade is their share of "
        "the row; a label that is wrong everywhere makes a dark column. Shown are the rows and "
        "columns of the most frequent pairs.",
    )
