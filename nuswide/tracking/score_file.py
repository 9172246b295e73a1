"""Files of scores, of this program or of another one.

Owns the npz and CSV formats, and the order of a manifest's images and labels. Computes no score and
no metric.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.data.manifest import Manifest, first_duplicate
from nuswide.data.text_files import read_table

FILE = "scores.npz"
_FORM = "an npz with images, labels and scores, or a CSV with a header of image,LABEL,LABEL,..."


@dataclass(frozen=True)
class SavedScores:
    """Scores (N, C) of named images for named labels.

    images: N names. labels: C names. scores: (N, C) float32 in [0, 1]. targets: (N, C) 0 or 1.
    known: (N, C) where targets are annotated; None for everywhere. thresholds: (C,). A file of
    another program may lack the last three.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    targets: NDArray[np.uint8] | None = None
    known: NDArray[np.bool_] | None = None
    thresholds: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, samples: Manifest, scores: NDArray[np.float32], thresholds: NDArray[np.float32]
    ) -> "SavedScores":
        """Return the scores of samples with their targets."""
        return cls(
            samples.names, samples.labels, scores, samples.targets, samples.known, thresholds
        )

    def save(self, path: Path) -> None:
        """Save a compressed npz."""
        arrays = {"images": np.array(self.images), "labels": np.array(self.labels)}
        for name in ("scores", "targets", "known", "thresholds"):
            if (value := getattr(self, name)) is not None:
                arrays[name] = value
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "SavedScores":
        """Load an npz or a CSV; nothing in it is executed.

        Raises click.ClickException for another format, or scores outside [0, 1].
        """
        try:
            found = cls(**(_read_npz(path) if _is_npz(path) else _read_csv(path)))
            found._check()
        except FileNotFoundError:
            raise click.ClickException(f"there is no file {path}") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise click.ClickException(f"cannot read {path} ({error}); give {_FORM}") from error
        return found

    def _check(self) -> None:
        shape = (len(self.images), len(self.labels))
        for name in ("scores", "targets", "known"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} are {value.shape}, not {shape} as images and labels")
        if self.scores.size and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError("scores must be numbers from 0 to 1; a sigmoid takes logits there")
        for name in ("images", "labels"):
            if doubled := first_duplicate(getattr(self, name)):
                raise ValueError(f"{doubled!r} is twice among the {name}")

    def for_samples(self, samples: Manifest) -> NDArray[np.float32]:
        """Return the scores in the order of a manifest's samples and labels; (N, C).

        Images are matched by their whole names, or else by the last part. Raises
        click.ClickException if some are missing.
        """
        columns = _indices(samples.labels, self.labels, "labels")
        whole = set(samples.names) <= set(self.images)
        own, wanted = (
            names if whole else tuple(PurePosixPath(name).name for name in names)
            for names in (self.images, samples.names)
        )
        if doubled := first_duplicate(own):
            raise click.ClickException(
                f"two images are called {doubled!r}; give the names that the data set has"
            )
        rows = _indices(wanted, own, "images")
        return self.scores[np.ix_(rows, columns)]


def _indices(wanted: Sequence[str], found: Sequence[str], kind: str) -> list[int]:
    index_of = {name: i for i, name in enumerate(found)}
    if missing := [name for name in wanted if name not in index_of]:
        raise click.ClickException(
            f"there are no scores for {len(missing)} of {len(wanted)} {kind}, {missing[0]!r} first"
        )
    return [index_of[name] for name in wanted]


def _is_npz(path: Path) -> bool:
    """Return whether a file is npz, by content, so that a CSV may have any name."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        optional = {name: file[name] for name in ("targets", "known", "thresholds") if name in file}
        return {
            "images": tuple(file["images"].astype(str).tolist()),
            "labels": tuple(file["labels"].astype(str).tolist()),
            "scores": file["scores"].astype(np.float32),
            **optional,
        }


def _read_csv(path: Path) -> dict[str, Any]:
    rows = read_table(path)
    _, header = next(rows, (0, []))
    if header[:1] != ["image"] or len(header) < 2:
        raise ValueError("its first line is no header of image,LABEL,LABEL,...")
    images, scores = [], []
    for number, (name, *numbers) in rows:
        images.append(name)
        try:
            scores.append(np.array(numbers, dtype=np.float32))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return {
        "images": tuple(images),
        "labels": tuple(header[1:]),
        "scores": np.array(scores, dtype=np.float32).reshape(len(images), len(header) - 1),
    }
