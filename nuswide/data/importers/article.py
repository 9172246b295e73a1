"""The article's format: train.json and test.json, or small_train.json and small_test.json.

Each is {"samples": [{"image_name", "image_labels"}], "labels": [...]}, with the images beside it or
in images/.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nuswide.data.importers.files import checked_labels, checked_name, make_manifest
from nuswide.data.manifest import Manifest
from nuswide.data.text_files import find_file, read_json

_NAMES = {"train": ("train.json", "small_train.json"), "test": ("test.json", "small_test.json")}


def detects(source: Path) -> bool:
    """Return whether a folder has one of the files."""
    return any(find_file(source, *names) for names in _NAMES.values())


def read_article_json(folder: Path) -> Manifest:
    """Read the two files of a folder; raises click.ClickException if one is invalid."""
    names: list[str] = []
    present: list[list[str]] = []
    splits: list[str] = []
    labels: list[str] | None = None
    for split, candidates in _NAMES.items():
        path = find_file(folder, *candidates)
        if path is None:
            raise click.ClickException(f"{folder} has no {' or '.join(candidates)}; put one there")
        content = _read_object(path)
        if labels is not None and content["labels"] != labels:
            raise click.ClickException(
                f"{path}: its labels differ from those of train; make them equal"
            )
        labels = content["labels"]
        for index, sample in enumerate(content["samples"]):
            names.append(_name_of(path, index, sample))
            present.append(sample["image_labels"])
            splits.append(split)
    assert labels is not None
    return make_manifest(folder, names, splits, labels, present)


def _read_object(path: Path) -> dict[str, Any]:
    """Read {"samples": [...], "labels": [...]} and check its structure."""
    content = read_json(path)
    for key in ("samples", "labels"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise click.ClickException(
                f'{path} has no list "{key}"; the article\'s format needs one'
            )
        if not content[key]:
            raise click.ClickException(f'{path}: "{key}" is empty; there is nothing to learn from')
    checked_labels(str(path), content["labels"])
    return content


def _name_of(path: Path, index: int, sample: Any) -> str:
    """Check a sample's structure and return its image name."""
    where = f"{path}: sample {index}"
    if not isinstance(sample, Mapping) or not isinstance(sample.get("image_name"), str):
        raise click.ClickException(f'{where} has no text "image_name"')
    present = sample.get("image_labels")
    if not isinstance(present, list) or not all(isinstance(label, str) for label in present):
        raise click.ClickException(f'{where} has no list of texts "image_labels"')
    return checked_name(where, sample["image_name"])
