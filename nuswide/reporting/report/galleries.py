"""The image galleries of a report, with captions of true and predicted labels and scores.

Owns the selection and the captions. Unknown labels are not in a caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from nuswide.metrics.predictions import Bools
from nuswide.reporting.report.entries import (
    Entry,
    best_hits,
    doubtful_negatives,
    doubtful_positives,
    false_positives,
    find_entries,
    misses,
    varied,
)
from nuswide.reporting.report.inputs import Part, ReportInputs
from nuswide.reporting.report.tables import predicted_of, reason

_MISTAKES, _HITS, _SUSPECTS = 12, 8, 8  # pictures of each kind
_CANDIDATES = 24  # entries a label that pictures are chosen from
_NAMED = 6  # labels in a line of a caption


@dataclass(frozen=True)
class Card:
    """An image (3, S, S), its alternative text, and the lines of its caption, a headline first."""

    entry: Entry
    image: NDArray[np.uint8]
    alt: str
    lines: tuple[str, ...]


def mistakes(inputs: ReportInputs) -> dict[str, list[Card]]:
    """Return the most confident false positives and misses, and the best hits."""
    samples, scores, thresholds = inputs.data.manifest, inputs.scores, inputs.thresholds
    found = {
        kind: varied(
            find_entries(samples, scores, value(thresholds), per_label=_CANDIDATES),
            count=_MISTAKES,
            n_labels=len(inputs.labels),
        )
        for kind, value in (("false_positives", false_positives), ("misses", misses))
    }
    found["best_hits"] = [
        _surest(inputs, image) for image in best_hits(samples, scores, thresholds, _HITS)
    ]
    said = {"false_positives": "predicted wrongly", "misses": "missed", "best_hits": ""}
    part = Part(inputs.data, scores)
    return {
        kind: _cards(part, thresholds, entries, [_headline(inputs, e, said[kind]) for e in entries])
        for kind, entries in found.items()
    }


def _surest(inputs: ReportInputs, image: int) -> Entry:
    """Return the found label of an image with the highest score."""
    hit = inputs.data.manifest.targets[image] > 0
    hit &= inputs.scores[image] >= inputs.thresholds
    label = int(np.where(hit, inputs.scores[image], -1).argmax())
    return Entry(float(inputs.scores[image, label]), image, label)


def _headline(inputs: ReportInputs, entry: Entry, said: str) -> str:
    name, score = inputs.labels[entry.label], inputs.scores[entry.image, entry.label]
    if not said:
        n_true = int((inputs.data.manifest.targets[entry.image] > 0).sum())
        return f"{n_true} label{'s' * (n_true != 1)}, {name} the surest"
    return f"{name} {said} at {score:.3f}"


def suspects(
    part: Part, thresholds: NDArray[np.float32], label_ap: NDArray[np.float64], ranked: int
) -> tuple[dict[str, list[Card]], list[Entry]]:
    """Return images whose labels may be missing or wrong, and the `ranked` most suspect entries."""
    samples = part.data.manifest
    galleries, entries = {}, []
    kinds = (("may_be_missing", doubtful_negatives), ("may_be_wrong", doubtful_positives))
    for kind, value in kinds:
        found = find_entries(samples, part.scores, value, per_label=ranked)
        entries += found
        chosen = varied(found, count=_SUSPECTS, n_labels=len(samples.labels))
        headlines = [_suspicion(part, entry, float(label_ap[entry.label])) for entry in chosen]
        galleries[kind] = _cards(part, thresholds, chosen, headlines)
    return galleries, sorted(entries, key=lambda e: (-e.value, e.image, e.label))[:ranked]


def _suspicion(part: Part, entry: Entry, ap: float) -> str:
    samples, index = part.data.manifest, (entry.image, entry.label)
    said = "labelled" if samples.targets[index] else "not labelled"
    why = reason(int(samples.targets[index]), ap)
    return f"{samples.labels[entry.label]}, {said}, scored {part.scores[index]:.3f}: {why}"


def _cards(
    part: Part, thresholds: NDArray[np.float32], entries: Sequence[Entry], headlines: Sequence[str]
) -> list[Card]:
    if not entries:
        return []
    pictures = part.data.gather(np.array([entry.image for entry in entries]))
    samples = part.data.manifest
    cards = []
    for entry, picture, headline in zip(entries, pictures, headlines, strict=True):
        scores = part.scores[entry.image]
        true = samples.targets[entry.image] > 0
        predicted = predicted_of(samples, scores, thresholds, entry.image)
        said = _outcomes(samples.labels, scores, true, predicted)
        name = PurePosixPath(samples.names[entry.image]).name
        alt = f"{headline}. True: {_names(samples.labels, true)}. Predicted: " + _names(
            samples.labels, predicted
        )
        first, _, rest = headline.partition(": ")
        lines = (first, *([rest] if rest else []), *said, name)
        cards.append(Card(entry, picture, f"{alt}.", lines))
    return cards


def _outcomes(
    labels: tuple[str, ...], scores: NDArray[np.float32], true: Bools, predicted: Bools
) -> list[str]:
    """Return lines of the found, wrong and missed labels, with their scores."""
    kinds = (("✓ found", true & predicted), ("+ wrong", predicted & ~true),
             ("− missed", true & ~predicted))  # fmt: skip
    return [f"{kind}: {_names(labels, chosen, scores)}" for kind, chosen in kinds if chosen.any()]


def _names(
    labels: tuple[str, ...], chosen: Bools, scores: NDArray[np.float32] | None = None
) -> str:
    """Return the chosen labels, the highest score first, with their scores if given."""
    indices = np.flatnonzero(chosen)
    if scores is not None:
        indices = indices[np.argsort(-scores[indices], kind="stable")]
    said = [f"{labels[i]} {scores[i]:.2f}" if scores is not None else labels[i]
            for i in indices[:_NAMED]]  # fmt: skip
    if len(indices) > _NAMED:
        said.append(f"{len(indices) - _NAMED} more")
    return ", ".join(said) or "none"
