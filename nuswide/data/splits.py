"""The splits of a data set: parts that are held out of train, and files of splits.

Owns who is in which split where the source does not say. Reads no image.

    >>> carved = carve_val(manifest, fraction=0.25, seed=0)
    >>> {split: len(carved.of(split)) for split in SPLITS}
    {'train': 7, 'val': 2, 'test': 3}
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.core.wording import counted
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.data.stratify import stratify
from nuswide.data.text_files import read_records


def hold_out(
    manifest: Manifest,
    *,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    folds: int = 0,
    fold: int = 0,
) -> Manifest:
    """Split test, then val off train, each unless the data has one or its fraction is 0.

    folds: if not 0, val is a fold of train and the data's own val instead.
    """
    if test_fraction and not len(manifest.indices("test")):
        manifest = carve_test(manifest, fraction=test_fraction, seed=seed)
    if folds:
        return carve_fold(manifest, folds=folds, fold=fold, seed=seed)
    if val_fraction and not len(manifest.indices("val")):
        manifest = carve_val(manifest, fraction=val_fraction, seed=seed)
    return manifest


def carve_val(manifest: Manifest, *, fraction: float, seed: int) -> Manifest:
    """Split a fraction of train off as val, stratified by label; see stratify.

    The same seed gives the same split. Images of one group stay together.
    """
    return _carve(manifest, "val", fraction, np.random.default_rng([seed, 0x5A1]))


def carve_fold(manifest: Manifest, *, folds: int, fold: int, seed: int) -> Manifest:
    """Divide train and val into folds, each stratified as by carve_val; make one of them val."""
    splits = np.where(manifest.splits == "val", "train", manifest.splits).astype("U5")
    left, groups = np.flatnonzero(splits == "train"), manifest.groups
    n_units = len(left) if groups is None else len(np.unique(groups[left]))
    if n_units < folds:
        units = "images" if groups is None else "groups of images"
        raise click.ClickException(f"{n_units} {units} are too few for folds={folds}; lower it")
    rng = np.random.default_rng([seed, 0xF01D])
    for number in range(fold + 1):
        own = None if groups is None else groups[left]
        is_chosen = stratify(manifest.targets[left], 1 / (folds - number), rng, own)
        chosen, left = left[is_chosen], left[~is_chosen]
    splits[chosen] = "val"
    return replace(manifest, splits=splits)


def carve_test(manifest: Manifest, *, fraction: float, seed: int) -> Manifest:
    """Split a fraction of train off as test, as carve_val does, and state it in the protocol."""
    carved = _carve(manifest, "test", fraction, np.random.default_rng([seed, 0x7E5]))
    return replace(
        carved, protocol=f"{manifest.protocol}, test_fraction={fraction:g} by seed {seed}"
    )


def _carve(manifest: Manifest, split: str, fraction: float, rng: np.random.Generator) -> Manifest:
    train = manifest.indices("train")
    groups = None if manifest.groups is None else manifest.groups[train]
    chosen = stratify(manifest.targets[train], fraction, rng, groups)
    splits = manifest.splits.astype("U5")  # wide enough for any split
    splits[train[chosen]] = split
    return replace(manifest, splits=splits)


def with_splits(manifest: Manifest, recorded: Mapping[str, str]) -> Manifest | None:
    """Return a manifest with the splits of an earlier one of the same data, None if it is another.

    recorded: split by image name. Val and test may have been carved out of train; apart from that
    all images must be in the same split as before.
    """
    splits = np.array([recorded.get(name, "") for name in manifest.names], dtype="U5")
    may_differ = manifest.splits == "train"
    for split in ("val", "test"):
        if len(manifest.indices(split)):
            may_differ &= splits != split
    if not (np.isin(splits, SPLITS) & ((splits == manifest.splits) | may_differ)).all():
        return None
    return replace(manifest, splits=splits)


def groups_across_splits(manifest: Manifest) -> list[str]:
    """Return the groups whose images are in more than one split, sorted."""
    if manifest.groups is None:
        return []
    pairs = set(zip(manifest.groups.tolist(), manifest.splits.tolist(), strict=True))
    return sorted(group for group, n in Counter(group for group, _ in pairs).items() if n > 1)


def splits_csv(manifest: Manifest) -> str:
    """Return a CSV with the columns image and split, as read_splits reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "split"), *zip(manifest.names, manifest.splits, strict=True)])
    return text.getvalue()


def read_splits(path: Path, names: tuple[str, ...]) -> NDArray[np.str_]:
    """Read each image's split; every image must be in the file, in exactly one split."""
    splits: dict[str, str] = {}
    for line, row in read_records(path):
        image, split = row.get("image"), row.get("split")
        if not image or split not in SPLITS:
            raise click.ClickException(
                f"{path}:{line} needs an image and one of {', '.join(SPLITS)}, under the header "
                "image,split"
            )
        if splits.setdefault(image, split) != split:
            raise click.ClickException(
                f"{path}:{line}: {image} is in {splits[image]} and in {split}; keep it in one"
            )
    missing = [name for name in names if name not in splits]
    if missing:
        raise click.ClickException(
            f"{path} has no split for {counted(len(missing), 'image')}, {missing[0]!r} first; "
            "add what is missing"
        )
    return np.array([splits[name] for name in names])
