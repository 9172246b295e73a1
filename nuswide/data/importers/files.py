"""Functions that importers share: checks of names and labels, and the Manifest made of them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import unknown_name
from nuswide.data.manifest import SPLITS, Manifest, first_duplicate

# Control characters and lone surrogates: JSON can express them, text files cannot hold them.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def split_in_name(path: Path) -> str | None:
    """Return the split that is a word of a file's name, as in train2017 and 81_train, or None."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split in SPLITS if split in words), None)


def checked_name(where: str, name: str) -> str:
    """Check that an image name stays in its folder and on one line; return it normalized."""
    pure = PurePosixPath(name)
    if not pure.parts or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise click.ClickException(f"{where}: image_name {name!r} must stay inside the folder")
    if _UNWRITABLE.search(name):
        raise click.ClickException(
            f"{where}: image_name {name!r} is not a plain line of text; rename the image"
        )
    return str(pure)


def checked_labels(where: str, labels: Sequence[Any]) -> list[str]:
    """Check that labels are plain texts without duplicates."""
    if not all(isinstance(label, str) and label for label in labels):
        raise click.ClickException(f'{where}: every one of "labels" must be a text')
    unwritable = next(filter(_UNWRITABLE.search, labels), None)
    if unwritable is not None:
        raise click.ClickException(
            f"{where}: label {unwritable!r} is not a plain line of text; correct it"
        )
    duplicate = first_duplicate(labels)
    if duplicate is not None:
        raise click.ClickException(f'{where}: "labels" has {duplicate!r} twice; keep one')
    return list(labels)


def make_manifest(
    source: Path,
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    present: Iterable[Iterable[str]],
    unknown: Iterable[Iterable[str]] | None = None,
) -> Manifest:
    """Build a Manifest from the label names of each sample; `unknown` names those not annotated."""
    targets = label_matrix(source, names, labels, present)
    known = None
    if unknown is not None:
        known = label_matrix(source, names, labels, unknown) == 0
        known |= targets == 1
    return manifest_of(source, names, splits, labels, targets, known)


def manifest_of(
    source: Path,
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    targets: NDArray[np.uint8],
    known: NDArray[np.bool_] | None = None,
) -> Manifest:
    """Build a Manifest with at least one label. targets, known: (N, C)."""
    if not targets.any():
        raise click.ClickException(
            f"{source}: no sample has any label; there is nothing to learn from"
        )
    return Manifest(
        root=source if source.is_dir() else source.parent,
        names=tuple(names),
        labels=tuple(labels),
        targets=targets,
        splits=np.array(splits),
        known=None if known is None or known.all() else known,
    )


def label_matrix(
    source: Path, names: Sequence[str], labels: Sequence[str], rows: Iterable[Iterable[str]]
) -> NDArray[np.uint8]:
    """Turn lists of label names into a binary matrix; (N, C)."""
    column = {label: c for c, label in enumerate(labels)}
    matrix = np.zeros((len(names), len(labels)), dtype=np.uint8)
    for row, (name, chosen) in enumerate(zip(names, rows, strict=True)):
        for label in chosen:
            if label not in column:
                raise click.ClickException(
                    f"{source}: {name}: {unknown_name('label', label, column)}; "
                    'correct the sample, or add it to "labels"'
                )
            matrix[row, column[label]] = 1
    return matrix
