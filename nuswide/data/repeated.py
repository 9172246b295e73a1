"""Images that a data set names more than once.

Owns their discovery and what becomes of them. Compares names only; data/duplicates.py compares the
images themselves.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nuswide.core.wording import counted
from nuswide.data.manifest import Manifest

_SHOWN = 5


@dataclass(frozen=True)
class Repeated:
    """An image that is named more than once.

    rows: its samples, in order. splits: the distinct splits of these. labels_differ: whether their
    labels, or what is known of them, differ.
    """

    name: str
    rows: tuple[int, ...]
    splits: tuple[str, ...]
    labels_differ: bool

    def __str__(self) -> str:
        notes = ["labels differ"] if self.labels_differ else []
        notes += [f"in {' and '.join(self.splits)}"] if len(self.splits) > 1 else []
        return f"{self.name!r}" + (f" ({'; '.join(notes)})" if notes else "")


def find_repeated(manifest: Manifest) -> list[Repeated]:
    """Find the images that occur more than once, in the order of their first samples."""
    if len(set(manifest.names)) == len(manifest):
        return []
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(manifest.names):
        rows_of[name].append(row)
    return [
        Repeated(
            name,
            tuple(rows),
            tuple(dict.fromkeys(manifest.splits[rows].tolist())),
            _differ(manifest.targets[rows])
            or (manifest.known is not None and _differ(manifest.known[rows])),
        )
        for name, rows in rows_of.items()
        if len(rows) > 1
    ]


def _differ(rows: NDArray[np.uint8] | NDArray[np.bool_]) -> bool:
    return bool((rows != rows[0]).any())


def describe_repeated(repeated: Sequence[Repeated]) -> str:
    """Return a clause with the number of repeated images, and the first of them."""
    labels = sum(one.labels_differ for one in repeated)
    splits = sum(len(one.splits) > 1 for one in repeated)
    more = " ..." if len(repeated) > _SHOWN else ""
    number = counted(len(repeated), "image occurs", "images occur")
    return (
        f"{number} more than once, {labels} of them with other labels and "
        f"{splits} in several splits: {', '.join(map(str, repeated[:_SHOWN]))}{more}"
    )


def repeated_rows(repeated: Sequence[Repeated]) -> Sequence[tuple[str, ...]]:
    """Return a header and a row for each repeated image, for a CSV file."""
    return [("image", "times", "splits", "labels")] + [
        (
            one.name,
            str(len(one.rows)),
            " ".join(one.splits),
            "differ" if one.labels_differ else "same",
        )
        for one in repeated
    ]


def keep_one(manifest: Manifest, repeated: Sequence[Repeated], *, merge: bool) -> Manifest:
    """Keep the first sample of each image, in its split.

    merge: give it the labels of all of the image's samples; a label is then unknown only if it is
    unknown in each of them.
    """
    targets = manifest.targets.copy()
    known = None if manifest.known is None else manifest.known.copy()
    for same in (list(one.rows) for one in repeated if merge):
        targets[same[0]] = targets[same].max(axis=0)
        if known is not None:
            known[same[0]] = known[same].any(axis=0)
    dropped = [row for one in repeated for row in one.rows[1:]]
    rows = np.setdiff1d(np.arange(len(manifest)), dropped)
    return replace(manifest, targets=targets, known=known).take(rows)
