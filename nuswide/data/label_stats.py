"""What training may know of its labels: how often they come, alone and together, and vectors.

Owns TrainLabels, which holds known entries of the train split and nothing else, and LABEL_VECTORS.
Never looks at val or test, nor at a picture.

    train = TrainLabels.of(manifest)
    vectors = label_vectors("pmi", train)  # (C, D)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.data.manifest import Manifest

Counts = NDArray[np.int64]
Vectors = NDArray[np.float32]
_ROWS = 8192  # of a product at once; float32 counts them exactly
_WIDTH = 300  # the most numbers that stand for a label


@dataclass(frozen=True)
class TrainLabels:
    """The C labels in the train split.

    names: C of them. targets: (N, C) uint8, 0 or 1. known: (N, C) bool, None if all are; targets
    are 0 where they are not.
    """

    names: tuple[str, ...]
    targets: NDArray[np.uint8]
    known: NDArray[np.bool_] | None

    @classmethod
    def of(cls, manifest: Manifest) -> "TrainLabels":
        """The labels of a manifest's train split."""
        train = manifest.of("train")
        return cls(train.labels, train.targets, train.known)

    @property
    def positives(self) -> Counts:
        """Images that have a label; (C,)."""
        return self.targets.sum(axis=0, dtype=np.int64)

    @property
    def n_known(self) -> Counts:
        """Images of which it is known whether they have a label; (C,)."""
        if self.known is None:
            return np.full(len(self.names), len(self.targets))
        return self.known.sum(axis=0, dtype=np.int64)

    def together(self) -> Counts:
        """Images that have both labels; (C, C), the diagonal their positives."""
        return _count(self.targets, self.targets)

    def comparable(self) -> Counts:
        """Images that have the row's label and of which the column's is known; (C, C)."""
        if self.known is None:
            return np.repeat(self.positives[:, None], len(self.names), axis=1)
        return _count(self.targets, self.known)

    def both_known(self) -> Counts:
        """Images of which it is known whether they have either label; (C, C)."""
        if self.known is None:
            return np.full((len(self.names), len(self.names)), len(self.targets))
        return _count(self.known, self.known)

    def conditional(self) -> NDArray[np.float64]:
        """How likely the column's label is where the row's is; (C, C), 0 for what never is."""
        return self.together() / np.maximum(self.comparable(), 1)


def _count(left: NDArray[np.generic], right: NDArray[np.generic]) -> Counts:
    """The rows that are set in both of two columns; (C, C)."""
    total = np.zeros((left.shape[1], right.shape[1]), dtype=np.int64)
    for start in range(0, len(left), _ROWS):
        rows = slice(start, start + _ROWS)
        total += (left[rows].T.astype(np.float32) @ right[rows].astype(np.float32)).astype(np.int64)
    return total


def label_vectors(source: str, train: TrainLabels) -> Vectors:
    """Give each label a vector of length 1; (C, D).

    source: a name of LABEL_VECTORS, or a file of word vectors. Of length 1, so that a network that
    takes them starts alike whatever their source.
    """
    if source in LABEL_VECTORS:
        vectors = LABEL_VECTORS[source](train)
    else:
        vectors = read_word_vectors(Path(source), train.names)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def one_hot(train: TrainLabels) -> Vectors:
    """A direction of its own for each label; (C, C)."""
    return np.eye(len(train.names), dtype=np.float32)


def pmi_vectors(train: TrainLabels) -> Vectors:
    """Vectors that are near each other where labels come together more than by chance; (C, D).

    The singular value decomposition of positive pointwise mutual information, D at most 300, each
    vector times the root of its singular value. Source: Levy and Goldberg 2014, "Neural Word
    Embedding as Implicit Matrix Factorization".
    """
    row = np.maximum(train.comparable(), 1).astype(np.float64)
    with np.errstate(divide="ignore"):
        pmi = np.log(train.together() * train.both_known() / (row * row.T))
    # One image more, and a positive at least, so that no label is without a direction of its own.
    np.fill_diagonal(pmi, np.log((train.n_known + 1) / np.maximum(train.positives, 1)))
    left, strengths, _ = np.linalg.svd(np.maximum(pmi, 0))
    vectors = left[:, :_WIDTH] * np.sqrt(strengths[:_WIDTH])
    return np.asarray(vectors, dtype=np.float32)


def read_word_vectors(path: Path, names: tuple[str, ...]) -> Vectors:
    """Read labels' vectors from a text file of `word number number ...` lines, as GloVe's; (C, D).

    A label of several words gets the mean of theirs. Raises click.ClickException for words that are
    not there, and for a file of another kind.
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
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                key, _, rest = line.partition(b" ")
                if key in keys and key.decode() not in found:
                    vector = np.array(rest.split(), dtype=np.float32)
                    width = len(next(iter(found.values()), vector))
                    if not len(vector) or len(vector) != width or not np.isfinite(vector).all():
                        raise ValueError(f"line {number} does not hold {width or 'some'} numbers")
                    found[key.decode()] = vector
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.ClickException(
            f"cannot read gcn_vectors={path} ({reason}); give {', '.join(LABEL_VECTORS)}, learned, "
            "or a text file of word vectors in GloVe's form"
        ) from error
    return found


LABEL_VECTORS: dict[str, Callable[[TrainLabels], Vectors]] = {
    "onehot": one_hot,
    "pmi": pmi_vectors,
}
