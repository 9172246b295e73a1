"""A report made of what an evaluation knows.

Owns Report, the order of the work, and the sentences at its top.

    report = make_report(subject)
    report.images["calibration"].save("calibration.png")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nuswide.metrics import Metrics, Predictions, label_average_precision
from nuswide.reporting import plots
from nuswide.reporting.report import galleries as pictures
from nuswide.reporting.report import tables as columns
from nuswide.reporting.report.drawings import Drawing, make_drawings
from nuswide.reporting.report.entries import find_confusions
from nuswide.reporting.report.galleries import Card
from nuswide.reporting.report.subject import (
    MOST_ENTRIES,
    Part,
    Sample,
    Subject,
    looked_at,
    some_rows,
)
from nuswide.reporting.table import Table, make_table

_LEAST_IMAGES = 10  # of a label, before it is called best or worst
_RANKED = 50  # suspected labels in their table


@dataclass(frozen=True)
class Report:
    """The pieces of a report. held_out: the split that suspected labels are of, or None.

    tables: name -> table, whole. drawings: name -> plot with its words. galleries: kind ->
    pictures with captions. findings: what a reader must know, a sentence each.
    """

    title: str
    split: str
    held_out: str | None
    findings: tuple[str, ...]
    tables: dict[str, Table]
    drawings: dict[str, Drawing]
    galleries: dict[str, list[Card]]

    @cached_property
    def images(self) -> dict[str, Image.Image]:
        """All there is to see, each as one picture: the drawings, and a sheet for each gallery."""
        drawn = {name: drawing.image for name, drawing in self.drawings.items()}
        return drawn | {kind: _sheet(cards) for kind, cards in self.galleries.items() if cards}


def make_report(subject: Subject) -> Report:
    """Make everything that a report shows; draws no page and writes no file."""
    sample = looked_at(subject, MOST_ENTRIES)
    figures = columns.metrics_of(sample)
    samples = subject.data.manifest
    confusions = find_confusions(samples, subject.scores, subject.thresholds)
    galleries = pictures.mistakes(subject)
    tables: dict[str, Table] = {
        "headline": columns.headline(subject, figures),
        "thresholds": columns.two_thresholds(sample),
        "per_label": columns.per_label(sample),
        "calibration": columns.calibration(sample.predictions),
        "confusions": columns.confusions(subject, confusions),
        "pictured": columns.pictured(
            subject, {kind: [card.entry for card in cards] for kind, cards in galleries.items()}
        ),
        "costs": make_table(("name", "value"), subject.costs.items()),
        "facts": make_table(("name", "value"), subject.facts.items()),
    }
    held_out = None
    if subject.held_out is not None and len(subject.held_out.data):
        part = subject.held_out
        held_out = str(part.data.manifest.splits[0])
        label_ap = _label_ap(part)
        found, ranked = pictures.suspects(part, subject.thresholds, label_ap, _RANKED)
        galleries |= found
        tables["suspects"] = columns.suspects(part, ranked, label_ap)
    return Report(
        title=subject.title,
        split=subject.split,
        held_out=held_out,
        findings=tuple(findings(sample, figures, tables)),
        tables=tables,
        drawings=make_drawings(sample, tables, confusions),
        galleries=galleries,
    )


def _sheet(cards: Sequence[Card]) -> Image.Image:
    captions = ["\n".join(card.lines) for card in cards]
    return plots.to_image(plots.picture_sheet([card.image for card in cards], captions))


def _label_ap(part: Part) -> NDArray[np.float64]:
    """Average precision of each label on as many images as memory allows; (C,)."""
    samples = part.data.manifest
    rows = some_rows(part.scores, MOST_ENTRIES)
    known = None if samples.known is None else samples.known[rows]
    return label_average_precision(
        Predictions(samples.targets[rows], part.scores[rows], known=known)
    )


def findings(sample: Sample, figures: Metrics, tables: dict[str, Table]) -> list[str]:
    """What a reader must know, a sentence each."""
    subject = sample.subject
    n_images, n_labels = subject.scores.shape
    said = [f"{n_images:,} images of {subject.split}, {n_labels:,} labels."]
    said += _sampling(sample) + _standing(subject, figures) + _cut(tables["thresholds"])
    said += _labels(tables["per_label"], subject.split)
    if subject.data.manifest.known is not None:
        unknown = int((~subject.data.manifest.known).sum())
        said.append(
            f"{unknown:,} of {n_images * n_labels:,} entries are unknown: no figure has them."
        )
    return said


def _sampling(sample: Sample) -> list[str]:
    if sample.is_all:
        return []
    given = sample.subject.figures is not None
    what = "tables and curves" if given else "figures, tables and curves"
    return [
        f"The {what} are of {len(sample.rows):,} of these images, drawn at random; the pictures "
        "and confusions are of all."
    ]


def _standing(subject: Subject, figures: Metrics) -> list[str]:
    """How good it is, how sure that is, and how good no model is."""
    if np.isnan(figures["map"]):
        return ["No image has any label, so that there is no average precision."]
    _, low, high = subject.intervals.get("map", (np.nan, np.nan, np.nan))
    sure = "" if np.isnan(low) else f" (95 % interval {low:.3f} to {high:.3f})"
    text = f"mAP is {figures['map']:.3f}{sure}"
    if subject.baselines:
        name, best = max(subject.baselines.items(), key=lambda item: item[1]["map"])
        text += f"; the trivial tagger {name} has {best['map']:.3f}"
    return [f"{text}."]


def _cut(table: Table) -> list[str]:
    own, half = next(values for name, *values in table.rows if name == "micro/f1")
    return [f"micro-F1 is {own:.3f} at the model's thresholds and {half:.3f} at 0.5."]


def _labels(table: Table, split: str) -> list[str]:
    """The best and worst label, and those that nothing is known of."""
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
        said.append(
            f"{missing:,} of {len(table['ap']):,} labels have no image in {split}: they have no "
            "AP, are left out of mAP, and count 0 in macro-F1."
        )
    return said
