"""A report from the inputs of an evaluation.

Owns Report, the order of the work, and the sentences at its top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nuswide.core.wording import counted
from nuswide.metrics import Metrics, Predictions, label_average_precision
from nuswide.reporting import plots
from nuswide.reporting.report import galleries as pictures
from nuswide.reporting.report import tables as columns
from nuswide.reporting.report.entries import find_confusions
from nuswide.reporting.report.galleries import Card
from nuswide.reporting.report.inputs import (
    MOST_ENTRIES,
    Part,
    ReportInputs,
    Sample,
    some_rows,
    take_sample,
)
from nuswide.reporting.report.plots import Plot, make_plots
from nuswide.reporting.table import Table, make_table

_LEAST_IMAGES = 10  # of a label, before it is called best or worst
_RANKED = 50  # suspected labels in their table


@dataclass(frozen=True)
class Report:
    """The pieces of a report. held_out: the split that suspected labels are of, or None.

    tables: name -> table, whole. plots: name -> plot with its texts. galleries: kind ->
    pictures with captions. findings: a sentence each.
    """

    title: str
    split: str
    held_out: str | None
    findings: tuple[str, ...]
    tables: dict[str, Table]
    plots: dict[str, Plot]
    galleries: dict[str, list[Card]]

    @cached_property
    def images(self) -> dict[str, Image.Image]:
        """Return the plots, and a sheet for each gallery; name -> image."""
        drawn = {name: plot.image for name, plot in self.plots.items()}
        return drawn | {kind: _sheet(cards) for kind, cards in self.galleries.items() if cards}


def make_report(inputs: ReportInputs) -> Report:
    """Make everything that a report shows. Writes no page and no file."""
    sample = take_sample(inputs, MOST_ENTRIES)
    metrics = columns.metrics_of(sample)
    samples = inputs.data.manifest
    confusions = find_confusions(samples, inputs.scores, inputs.thresholds)
    galleries = pictures.mistakes(inputs)
    tables: dict[str, Table] = {
        "headline": columns.headline(inputs, metrics),
        "thresholds": columns.two_thresholds(sample),
        "per_label": columns.per_label(sample),
        "calibration": columns.calibration(sample.predictions),
        "confusions": columns.confusions(inputs, confusions),
        "pictured": columns.pictured(
            inputs, {kind: [card.entry for card in cards] for kind, cards in galleries.items()}
        ),
        "costs": make_table(("name", "value"), inputs.costs.items()),
        "facts": make_table(("name", "value"), inputs.facts.items()),
    }
    held_out = None
    if inputs.held_out is not None and len(inputs.held_out.data):
        part = inputs.held_out
        held_out = str(part.data.manifest.splits[0])
        label_ap = _label_ap(part)
        found, ranked = pictures.suspects(part, inputs.thresholds, label_ap, _RANKED)
        galleries |= found
        tables["suspects"] = columns.suspects(part, ranked, label_ap)
    return Report(
        title=inputs.title,
        split=inputs.split,
        held_out=held_out,
        findings=tuple(findings(sample, metrics, tables)),
        tables=tables,
        plots=make_plots(sample, tables, confusions),
        galleries=galleries,
    )


def _sheet(cards: Sequence[Card]) -> Image.Image:
    captions = ["\n".join(card.lines) for card in cards]
    return plots.to_image(plots.picture_sheet([card.image for card in cards], captions))


def _label_ap(part: Part) -> NDArray[np.float64]:
    """Return each label's average precision on as many images as memory allows; (C,)."""
    samples = part.data.manifest
    rows = some_rows(part.scores, MOST_ENTRIES)
    known = None if samples.known is None else samples.known[rows]
    return label_average_precision(
        Predictions(samples.targets[rows], part.scores[rows], known=known)
    )


def findings(sample: Sample, metrics: Metrics, tables: dict[str, Table]) -> list[str]:
    """Return the main findings, a sentence each."""
    inputs = sample.inputs
    n_images, n_labels = inputs.scores.shape
    images = counted(n_images, f"image of {inputs.split}", f"images of {inputs.split}")
    said = [f"{images}, {counted(n_labels, 'label')}."]
    said += _sampling(sample) + _standing(inputs, metrics) + _cut(tables["thresholds"])
    said += _labels(tables["per_label"], inputs.split)
    if inputs.data.manifest.known is not None:
        unknown = int((~inputs.data.manifest.known).sum())
        of_all = f"of {n_images * n_labels:,} entries"
        said.append(
            f"{counted(unknown, f'{of_all} is', f'{of_all} are')} unknown and in no metric."
        )
    return said


def _sampling(sample: Sample) -> list[str]:
    if sample.is_all:
        return []
    given = sample.inputs.metrics is not None
    what = "tables and curves" if given else "metrics, tables and curves"
    return [
        f"The {what} are of {len(sample.rows):,} of these images, drawn at random; the pictures "
        "and confusions are of all."
    ]


def _standing(inputs: ReportInputs, metrics: Metrics) -> list[str]:
    """Describe the mAP, its interval, and that of the best trivial tagger."""
    if np.isnan(metrics["map"]):
        return ["No image has any label, so that there is no average precision."]
    _, low, high = inputs.intervals.get("map", (np.nan, np.nan, np.nan))
    sure = "" if np.isnan(low) else f" (95 % interval {low:.3f} to {high:.3f})"
    text = f"mAP is {metrics['map']:.3f}{sure}"
    if inputs.baselines:
        name, best = max(inputs.baselines.items(), key=lambda item: item[1]["map"])
        text += f"; the trivial tagger {name} has {best['map']:.3f}"
    return [f"{text}."]


def _cut(table: Table) -> list[str]:
    own, half = next(values for name, *values in table.rows if name == "micro/f1")
    return [f"micro-F1 is {own:.3f} at the model's thresholds and {half:.3f} at 0.5."]


def _labels(table: Table, split: str) -> list[str]:
    """Describe the best and the worst label, and the labels without images."""
    names, support = table["label"], table["support"]
    judged = [(ap, i) for i, ap in enumerate(table["ap"]) if support[i] >= _LEAST_IMAGES]
    said = []
    if len(judged) > 1:
        (high, best), (low, worst) = max(judged), min(judged)
        said.append(
            f"Of the {len(judged):,} labels with {_LEAST_IMAGES} images or more in {split} the "
            f"best is {names[best]} (AP {high:.3f}), the worst {names[worst]} (AP {low:.3f})."
        )
    if missing := table["ap"].count(None):
        of_all = f"of {len(table['ap']):,} labels"
        said.append(
            f"{counted(missing, f'{of_all} has', f'{of_all} have')} no image in {split}: no AP, no "
            "part in mAP, and 0 in macro-F1."
        )
    return said
