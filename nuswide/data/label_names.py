"""Names of labels: those that look alike, and their renaming by a file.

Owns the file of a label map and what it makes of a manifest.

    >>> look_alikes(("Sky", "sea", "sky", "sky "))
    [('Sky', 'sky', 'sky ')]
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from nuswide.config import unknown_name
from nuswide.data.importers.files import checked_labels
from nuswide.data.manifest import Manifest
from nuswide.data.text_files import read_records

# What separates labels in files of other forms; found inside a label, several were read as one.
_SEPARATORS = re.compile(r"[;|,\t]|' '")


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of labels that differ in case, blanks, hyphens and underscores only.

    A letter with an accent is the same as the letter and the accent.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        composed = unicodedata.normalize("NFKC", label)
        groups[re.sub(r"[\s_-]+", "", composed).casefold()].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def with_separators(labels: Iterable[str]) -> list[str]:
    """Return the labels that contain what usually separates labels."""
    return [label for label in labels if _SEPARATORS.search(label)]


def read_label_map(path: Path, labels: Iterable[str]) -> dict[str, str]:
    """Read a CSV file with the columns from and to; an empty `to` drops the label.

    Cells are taken as they are, blanks included. Raises click.ClickException for a label that is
    not among `labels` or is there twice.
    """
    known = dict.fromkeys(labels)
    label_map: dict[str, str] = {}
    for number, row in read_records(path, "from", "to"):
        where = f"{path}:{number}"
        label, to = row["from"], row["to"].strip()
        checked_labels(where, [to] if to else [])
        if label not in known:
            raise click.ClickException(f"{where}: {unknown_name('label', label, known)}")
        if label in label_map:
            raise click.ClickException(f"{where}: {label!r} is there twice; keep one")
        label_map[label] = to
    return label_map


def map_labels(manifest: Manifest, label_map: Mapping[str, str]) -> Manifest:
    """Rename, merge and drop labels, and state it in the manifest.

    Of merged labels, an image has the new one if it has any; it is unknown if it has none and any
    is unknown.
    """
    sources: dict[str, list[int]] = defaultdict(list)
    for column, label in enumerate(manifest.labels):
        if to := label_map.get(label, label):
            sources[to].append(column)
    n = len(manifest)
    targets = [manifest.targets[:, columns].max(axis=1) for columns in sources.values()]
    known = None
    if manifest.known is not None:
        merged = [manifest.known[:, columns].all(axis=1) for columns in sources.values()]
        known = np.column_stack(merged or [np.empty((n, 0), bool)])
        known |= np.column_stack(targets or [np.empty((n, 0), np.uint8)]) == 1
    return replace(
        manifest,
        labels=tuple(sources),
        targets=np.column_stack(targets or [np.empty((n, 0), np.uint8)]),
        known=known,
        label_map=_composed(manifest.label_map, label_map),
    )


def _composed(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Return what two label maps make of the labels before the first.

    A label that only the second has may have been there before the first, beside those that the
    first renamed to it.
    """
    return dict(then) | {label: then.get(to, to) for label, to in first.items()}
