"""Label statistics of the training split: frequencies, co-occurrence, and label vectors.

Owns TrainLabels, which holds known entries of the training split only, and LABEL_VECTORS. Never
reads val or test, nor an image.

    >>> train = TrainLabels.of(manifest)
    >>> label_vectors("onehot", train).shape == (len(train.names), len(train.names))
    True
"""

import codecs
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.data.manifest import Manifest
from nuswide.data.text_files import open_binary

Counts = NDArray[np.int64]
Vectors = NDArray[np.float32]
_ROWS = 8192  # per matrix product; float32 counts them exactly
_WIDTH = 300  # maximum dimension of a label vector


@dataclass(frozen=True)
class TrainLabels:
    """The C labels of the training split.

    names: C label names. targets: (N, C) uint8, 0 or 1. known: (N, C) bool, None if all are known;
    unknown targets are 0.
    """

    names: tuple[str, ...]
    targets: NDArray[np.uint8]
    known: NDArray[np.bool_] | None

    @classmethod
    def of(cls, manifest: Manifest) -> "TrainLabels":
        """Return the labels of a manifest's training split."""
        train = manifest.of("train")
        return cls(train.labels, train.targets, train.known)

    @property
    def positives(self) -> Counts:
        """Number of images with each label; (C,)."""
        return self.targets.sum(axis=0, dtype=np.int64)

    @property
    def n_known(self) -> Counts:
        """Number of images in which each label is known; (C,)."""
        if self.known is None:
            return np.full(len(self.names), len(self.targets))
        return self.known.sum(axis=0, dtype=np.int64)

    def together(self) -> Counts:
        """Count the images with both labels; (C, C), the positives on the diagonal."""
        return _count(self.targets, self.targets)

    def comparable(self) -> Counts:
        """Count the images that have the row's label and in which the column's is known; (C, C)."""
        if self.known is None:
            return np.repeat(self.positives[:, None], len(self.names), axis=1)
        return _count(self.targets, self.known)

    def both_known(self) -> Counts:
        """Count the images in which both labels are known; (C, C)."""
        if self.known is None:
            return np.full((len(self.names), len(self.names)), len(self.targets))
        return _count(self.known, self.known)

    def conditional(self) -> NDArray[np.float64]:
        """Return the conditional probability of the column's label given the row's; (C, C)."""
        return self.together() / np.maximum(self.comparable(), 1)


def _count(left: NDArray[np.generic], right: NDArray[np.generic]) -> Counts:
    """Count the rows in which both columns are set; (C, C)."""
    total = np.zeros((left.shape[1], right.shape[1]), dtype=np.int64)
    for start in range(0, len(left), _ROWS):
        rows = slice(start, start + _ROWS)
        total += (left[rows].T.astype(np.float32) @ right[rows].astype(np.float32)).astype(np.int64)
    return total


def label_vectors(source: str, train: TrainLabels) -> Vectors:
    """Return a vector of unit length for each label; (C, D).

    source: a name of LABEL_VECTORS, or a file of word vectors. Unit length makes the initial scale
    of a network independent of the source.
    """
    if source in LABEL_VECTORS:
        vectors = LABEL_VECTORS[source](train)
    else:
        vectors = read_word_vectors(Path(source), train.names)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def one_hot(train: TrainLabels) -> Vectors:
    """Return an orthogonal vector for each label; (C, C)."""
    return np.eye(len(train.names), dtype=np.float32)


def pmi_vectors(train: TrainLabels) -> Vectors:
    """Return vectors that are close for labels that occur together more than by chance; (C, D).

    Singular value decomposition of the positive pointwise mutual information, D at most 300, each
    vector multiplied by the square root of its singular value. Source: Levy and Goldberg 2014,
    "Neural Word Embedding as Implicit Matrix Factorization".
    """
    row = np.maximum(train.comparable(), 1).astype(np.float64)
    with np.errstate(divide="ignore"):
        pmi = np.log(train.together() * train.both_known() / (row * row.T))
    # One image and one positive more than counted, so that no label has a zero vector.
    np.fill_diagonal(pmi, np.log((train.n_known + 1) / np.maximum(train.positives, 1)))
    left, strengths, _ = np.linalg.svd(np.maximum(pmi, 0))
    vectors = left[:, :_WIDTH] * np.sqrt(strengths[:_WIDTH])
    return np.asarray(vectors, dtype=np.float32)


def read_word_vectors(path: Path, names: tuple[str, ...]) -> Vectors:
    """Read label vectors from a text file of `word number number ...` lines, as GloVe's; (C, D).

    A label of several words gets the mean of their vectors. Raises click.ClickException for missing
    words and for a file of another format.
    """
    words = [_words(name) for name in names]
    found = _find_words(path, {word for several in words for word in several})
    wordless = [name for name, several in zip(names, words, strict=True) if not several]
    missing = sorted({word for several in words for word in several} - found.keys()) + wordless
    if missing:
        raise click.ClickException(
            f"gcn_vectors={path} lacks {len(missing)} of the labels' words "
            f"({', '.join(missing[:10])}); add them, or give gcn_vectors=pmi"
        )
    return np.stack([np.mean([found[word] for word in several], axis=0) for several in words])


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _find_words(path: Path, wanted: set[str]) -> dict[str, Vectors]:
    keys = {word.encode() for word in wanted}
    found: dict[str, Vectors] = {}
    try:
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                key, _, rest = line.removeprefix(codecs.BOM_UTF8).partition(b" ")
                if key in keys and key.decode() not in found:
                    vector = np.array(rest.split(), dtype=np.float32)
                    width = len(next(iter(found.values()), vector))
                    if not len(vector) or len(vector) != width or not np.isfinite(vector).all():
                        raise ValueError(f"line {number} does not hold {width or 'some'} numbers")
                    found[key.decode()] = vector
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(
            f"cannot read gcn_vectors={path} ({reason}); give {', '.join(LABEL_VECTORS)}, learned, "
            "or a text file of word vectors in GloVe's form"
        ) from error
    return found


LABEL_VECTORS: dict[str, Callable[[TrainLabels], Vectors]] = {
    "onehot": one_hot,
    "pmi": pmi_vectors,
}
