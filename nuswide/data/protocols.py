"""Named protocols: selections of samples and labels that publications refer to.

Owns PROTOCOLS, the label sets and the check of the counts that a protocol prescribes. Reads no
annotations and no image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import lookup, unknown_name
from nuswide.data.manifest import Manifest
from nuswide.data.text_files import read_lines

LABELS_27 = tuple(
    "house birds sun valley nighttime boats mountain tree snow beach vehicle rocks reflection "
    "sunset road flowers ocean lake window plants buildings grass water animal person clouds sky"
    .split()
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """What a protocol prescribes.

    about: a description. counts: images of each split, None for any. n_labels: 81 or 27, None for
    any. unlabelled: `keep` or `drop`, None for the user's choice. is_first: whether only the first
    rows of each split are selected, as many as counts says.
    """

    about: str
    counts: Mapping[str, int] | None = None
    n_labels: int | None = None
    unlabelled: str | None = None
    is_first: bool = False


def apply_protocol(
    manifest: Manifest,
    name: str,
    *,
    labels: str = "all",
    unlabelled: str = "keep",
    order: str = "listed",
    seed: int = 0,
) -> Manifest:
    """Select the samples and labels of a protocol, and check their counts.

    labels: `all`, `27` (the article's), `top:N` (the most frequent in train), or a file of
    one label per line. unlabelled: `keep` or `drop` images without any of these. order: `listed` or
    `shuffled`, for a protocol that selects the first rows. Raises click.ClickException naming the
    counts if they are not the prescribed ones.
    """
    protocol = lookup(PROTOCOLS, "protocol", name)
    if protocol.n_labels:
        _require_default(name, "labels", labels, "all")
        labels = "27" if protocol.n_labels == 27 else "all"
    if protocol.unlabelled:
        _require_default(name, "unlabelled", unlabelled, "keep")
        unlabelled = protocol.unlabelled
    manifest = manifest.take_labels(choose_labels(manifest, labels))
    if unlabelled == "drop":
        manifest = manifest.take(np.flatnonzero(manifest.targets.any(axis=1)))
    if order == "shuffled":
        manifest = manifest.take(np.random.default_rng([seed, 0x0D3]).permutation(len(manifest)))
    if protocol.is_first and protocol.counts:
        manifest = manifest.take(_first_rows(manifest, protocol.counts))
    shown_name = f"{name} shuffled by seed {seed}" if order == "shuffled" else name
    _check_counts(manifest, name, protocol)
    return replace(manifest, protocol=shown_name, unlabelled=unlabelled)


def _require_default(name: str, field: str, value: str, default: str) -> None:
    if value != default:
        raise click.UsageError(f"protocol {name} fixes {field}; leave {field}={value} out")


def choose_labels(manifest: Manifest, labels: str) -> tuple[str, ...]:
    """Turn `all`, `27`, `top:N` or a file into label names of the manifest.

    `top:N` counts in train only, so that test has no influence.
    """
    if labels == "all":
        return manifest.labels
    if labels == "27":
        chosen = LABELS_27
    elif labels.startswith("top:"):
        return _most_frequent(manifest, labels.removeprefix("top:"))
    else:
        chosen = _read_labels(Path(labels))
    for label in chosen:
        if label not in manifest.labels:
            raise click.ClickException(
                f"labels={labels}: {unknown_name('label', label, dict.fromkeys(manifest.labels))}"
            )
    return chosen


def _most_frequent(manifest: Manifest, number: str) -> tuple[str, ...]:
    if not number.isdecimal() or not 1 <= int(number) <= len(manifest.labels):
        raise click.UsageError(
            f"labels=top:{number} must name a number from 1 to {len(manifest.labels)}"
        )
    counts = manifest.of("train").positives
    best = np.argsort(-counts, kind="stable")[: int(number)]
    return tuple(manifest.labels[i] for i in sorted(best))


def _read_labels(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise click.UsageError(f"labels={path} is neither all, 27, top:N nor a readable file")
    labels = tuple(line.strip() for line in read_lines(path) if line.strip())
    if not labels or len(set(labels)) < len(labels):
        raise click.ClickException(f"{path} must hold one label per line, and none twice")
    return labels


def _first_rows(manifest: Manifest, counts: Mapping[str, int]) -> NDArray[np.int64]:
    chosen = [manifest.indices(split)[:count] for split, count in counts.items()]
    return np.concatenate(chosen)


def _check_counts(manifest: Manifest, name: str, protocol: Protocol) -> None:
    found = {split: len(manifest.indices(split)) for split in ("train", "val", "test")}
    if protocol.n_labels and len(manifest.labels) != protocol.n_labels:
        raise click.ClickException(
            f"protocol {name} has {protocol.n_labels} labels, but the source has "
            f"{len(manifest.labels)}; give protocol=source, or another source"
        )
    if protocol.counts and found != {"val": 0, **protocol.counts}:
        expected, found_text = (
            ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
            for counts in (protocol.counts, found)
        )
        raise click.ClickException(
            f"protocol {name} prescribes {expected} images, but the source has {found_text}; "
            "give protocol=source to use it unchanged, or another source"
        )


# Counts: Chua et al., CIVR 2009, and the lists that HashNet was published with.
PROTOCOLS = {
    "source": Protocol("the source's own samples and split"),
    "official": Protocol(
        "NUS-WIDE's train and test lists, whole",
        counts={"train": 161_789, "test": 107_859}, n_labels=81, unlabelled="keep",
    ),
    "official-labelled": Protocol(
        "NUS-WIDE's train and test lists, less the images without one of the 81 labels",
        counts={"train": 125_449, "test": 83_898}, n_labels=81, unlabelled="drop",
    ),
    "hashnet": Protocol(
        "the lists published with HashNet, images without a label among them",
        counts={"train": 10_000, "test": 5_000}, n_labels=81, unlabelled="keep",
    ),
    "article": Protocol(
        "the first 5,000 train and 1,000 test rows that carry one of the article's 27 labels",
        counts={"train": 5_000, "test": 1_000}, n_labels=27, unlabelled="drop", is_first=True,
    ),
}  # fmt: skip
