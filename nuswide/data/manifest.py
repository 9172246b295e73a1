"""The Manifest: the images of a data set, their labels and their splits.

Owns the type, its digest and its files. Never reads an image, nor depends on the format of the
annotations.

    >>> {split: len(manifest.of(split)) for split in SPLITS}
    {'train': 9, 'val': 0, 'test': 3}
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
_META, _SAMPLES = "manifest.json", "samples.csv"


@dataclass(frozen=True)
class Manifest:
    """N samples over C labels.

    root: folder that the image names are relative to. names: N image names. labels: C label names.
    targets: (N, C) uint8, 0 or 1. splits: (N,) strings of SPLITS. known: (N, C) bool, or None if
    every entry is known; unknown targets are 0. protocol: name of the rule that selected the
    samples. unlabelled: `keep` or `drop`, for images without a label. rejected: number of images
    left out because they are missing or cannot be decoded. groups: (N,) names; images of one group,
    such as those of a scene, stay in one split. None for no groups. label_map: what the source's
    labels were renamed to; "" for dropped ones.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[str, ...]
    targets: NDArray[np.uint8]
    splits: NDArray[np.str_]
    known: NDArray[np.bool_] | None = None
    protocol: str = "source"
    unlabelled: str = "keep"
    rejected: int = 0
    groups: NDArray[np.str_] | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.targets.shape == (len(self.names), len(self.labels))
        assert self.splits.shape == (len(self.names),)
        assert self.groups is None or self.groups.shape == self.splits.shape
        assert self.known is None or self.known.shape == self.targets.shape
        assert self.known is None or not self.targets[~self.known].any()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def positives(self) -> NDArray[np.int64]:
        """Number of samples known to have each label; (C,)."""
        return self.targets.sum(axis=0, dtype=np.int64)

    def of(self, split: str) -> "Manifest":
        """Return the samples of one split, in order."""
        return self.take(self.indices(split))

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the row indices of one split's samples."""
        return np.flatnonzero(self.splits == split)

    def take(self, rows: NDArray[np.int64]) -> "Manifest":
        """Return the samples at these row indices, in this order."""
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            targets=self.targets[rows],
            splits=self.splits[rows],
            known=None if self.known is None else self.known[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def take_labels(self, labels: Sequence[str]) -> "Manifest":
        """Return the same samples with only these labels, in this order."""
        columns = [self.labels.index(label) for label in labels]
        return replace(
            self,
            labels=tuple(labels),
            targets=self.targets[:, columns],
            known=None if self.known is None else self.known[:, columns],
        )

    @cached_property
    def digest(self) -> str:
        """A digest of the annotations and splits; 16 hex digits.

        It is independent of folders and of the order of samples and labels, so that two copies of a
        data set agree. Images are identified by the last part of their names.
        """
        order = np.argsort(self.labels)
        states = self.targets[:, order] + 0
        if self.known is not None:
            states[~self.known[:, order]] = 2
        rows = (
            f"{PurePosixPath(name).name}\0{split}\0".encode() + state.tobytes()
            for name, split, state in zip(self.names, self.splits, states, strict=True)
        )
        content = hashlib.sha256(json.dumps(sorted(self.labels)).encode())
        for row in sorted(rows):
            content.update(row)
        return content.hexdigest()[:16]

    @cached_property
    def full_digest(self) -> str:
        """`digest`, followed by one of the groups if there are any: what val is carved by."""
        if self.groups is None:
            return self.digest
        names = (PurePosixPath(name).name for name in self.names)
        rows = sorted(f"{n}\0{group}" for n, group in zip(names, self.groups, strict=True))
        return f"{self.digest} {hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"

    def save(self, folder: Path) -> None:
        """Write manifest.json and samples.csv; the latter refers to labels by their indices."""
        meta = {
            "root": str(self.root), "protocol": self.protocol, "unlabelled": self.unlabelled,
            "rejected": self.rejected, "digest": self.digest, "labels": self.labels,
            "full_digest": self.full_digest, "label_map": dict(self.label_map),
        }  # fmt: skip
        has_groups = self.groups is not None
        with (folder / _SAMPLES).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "split", "labels", "unknown"] + ["group"] * has_groups)
            unknown = np.zeros_like(self.targets) if self.known is None else ~self.known
            for row, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
                states = (np.flatnonzero(matrix[row]) for matrix in (self.targets, unknown))
                group = [] if self.groups is None else [self.groups[row]]
                writer.writerow([name, split, *(" ".join(map(str, s)) for s in states), *group])
        text = json.dumps(meta, indent=1, ensure_ascii=False)
        (folder / _META).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def is_saved_in(folder: Path) -> bool:
        """Return whether save() has written to a folder."""
        return (folder / _META).is_file()

    @staticmethod
    def is_saved_as(path: Path) -> bool:
        """Return whether a file is the table that save() has written, with indices of labels."""
        return path.name == _SAMPLES and Manifest.is_saved_in(path.parent)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read what save() wrote; raises ValueError if it was changed since."""
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            with (folder / _SAMPLES).open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))[1:]
            names, splits, *columns = zip(*rows, strict=True)
            targets, unknown = (_matrix(column, len(meta["labels"])) for column in columns[:2])
            groups = np.array(columns[2]) if len(columns) > 2 else None
            manifest = cls(
                Path(meta["root"]), names, tuple(meta["labels"]), targets, np.array(splits),
                None if not unknown.any() else unknown == 0,
                meta["protocol"], meta["unlabelled"], meta["rejected"], groups,
                meta.get("label_map", {}),  # since version 0.3.0
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{folder / _META} or {_SAMPLES} is damaged ({error})") from error
        if manifest.full_digest != meta.get("full_digest", meta["digest"]):  # since version 0.3.0
            raise ValueError(f"{folder / _SAMPLES} was changed after it was written")
        return manifest


def first_duplicate(names: Iterable[str]) -> str | None:
    """Return the first name that occurs again, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _matrix(column: Sequence[str], n_labels: int) -> NDArray[np.uint8]:
    """Turn texts like `3 17` into rows with 1 in these columns."""
    matrix = np.zeros((len(column), n_labels), dtype=np.uint8)
    for row, text in enumerate(column):
        matrix[row, [int(number) for number in text.split()]] = 1
    return matrix
