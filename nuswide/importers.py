"""Annotations in the forms they come in, read into a Manifest.

Owns the reading and checking of annotation files. Never looks for a picture, nor decodes one.

    manifest = read_article_json(Path("photos"))
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np

from nuswide.config import unknown_name
from nuswide.manifest import Manifest

_NAMES = {"train": ("train.json", "small_train.json"), "test": ("test.json", "small_test.json")}


def read_article_json(folder: Path) -> Manifest:
    """Read train.json and test.json (or small_train.json and small_test.json) of a folder.

    Each is {"samples": [{"image_name", "image_labels"}], "labels": [...]}, with the pictures beside
    it or in images/. Raises click.ClickException, naming file and sample, for whatever is wrong.
    """
    if not folder.is_dir():
        raise click.ClickException(
            f"there is no folder {folder}; give data=DIR with train.json and test.json in it"
        )
    names: list[str] = []
    sample_labels: list[list[str]] = []
    splits: list[str] = []
    labels: list[str] | None = None
    for split in ("train", "test"):
        path = _find_annotations(folder, split)
        content = _read_object(path)
        if labels is not None and content["labels"] != labels:
            raise click.ClickException(
                f"{path}: its labels differ from those of train; make them equal"
            )
        labels = content["labels"]
        for index, sample in enumerate(content["samples"]):
            names.append(_checked_name(path, index, sample))
            sample_labels.append(sample["image_labels"])
            splits.append(split)
    assert labels is not None
    return Manifest(
        root=folder,
        names=tuple(names),
        labels=tuple(labels),
        targets=_targets(folder, names, sample_labels, labels),
        splits=np.array(splits),
    )


def _find_annotations(folder: Path, split: str) -> Path:
    for name in _NAMES[split]:
        if (folder / name).is_file():
            return folder / name
    raise click.ClickException(f"{folder} has no {' or '.join(_NAMES[split])}; put one there")


def _read_object(path: Path) -> dict[str, Any]:
    """Read {"samples": [...], "labels": [...]} and check its outer form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} is not valid JSON: {error}") from error
    for key in ("samples", "labels"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise click.ClickException(
                f'{path} has no list "{key}"; the article\'s format needs one'
            )
        if not content[key]:
            raise click.ClickException(f'{path}: "{key}" is empty; there is nothing to learn from')
    labels = content["labels"]
    if not all(isinstance(label, str) and label for label in labels):
        raise click.ClickException(f'{path}: every one of "labels" must be a text')
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise click.ClickException(f'{path}: "labels" has {doubled[0]!r} twice; keep one')
    return content


def _checked_name(path: Path, index: int, sample: Any) -> str:
    """Check a sample's form, and give its image name, which must stay in the folder."""
    where = f"{path}: sample {index}"
    if not isinstance(sample, Mapping) or not isinstance(sample.get("image_name"), str):
        raise click.ClickException(f'{where} has no text "image_name"')
    sample_labels = sample.get("image_labels")
    if not isinstance(sample_labels, list) or not all(isinstance(x, str) for x in sample_labels):
        raise click.ClickException(f'{where} has no list of texts "image_labels"')
    name: str = sample["image_name"]
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise click.ClickException(f"{where}: image_name {name!r} must stay inside the folder")
    return name


def _targets(
    folder: Path, names: list[str], sample_labels: list[list[str]], labels: list[str]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn lists of label names into 0/1 vectors; (N, C)."""
    column = {label: c for c, label in enumerate(labels)}
    targets = np.zeros((len(names), len(labels)), dtype=np.uint8)
    for row, (name, present) in enumerate(zip(names, sample_labels, strict=True)):
        for label in present:
            if label not in column:
                raise click.ClickException(
                    f"{folder}: {name}: {unknown_name('label', label, column)}; "
                    'mend the sample, or add it to "labels"'
                )
            targets[row, column[label]] = 1
    if not targets.any():
        raise click.ClickException(
            f"{folder}: no sample has any label; there is nothing to learn from"
        )
    return targets
