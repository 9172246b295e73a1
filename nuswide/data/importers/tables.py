"""CSV tables with the columns image and labels, and optionally split and unknown.

Labels are separated by semicolons, because names contain spaces. `unknown` names labels for which
the image was not annotated; they are neither positive nor negative. Without the column split, all
images are train. A further column may name groups of images, which stay in one split.
"""

import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from nuswide.data.importers.files import checked_labels, checked_name, make_manifest
from nuswide.data.manifest import SPLITS, Manifest, first_duplicate
from nuswide.data.text_files import first_line, has_suffix, read_records

_KNOWN = "image, labels, split, unknown"
_NEEDED, _ALLOWED = {"image", "labels"}, set(_KNOWN.split(", "))


def detects(source: Path) -> bool:
    """Return whether a file, or exactly one file in a folder, has such a header."""
    return len(_tables(source)) == 1


def read(source: Path, group_column: str | None = None) -> Manifest:
    """Read a table, or the only one in a folder.

    group_column: names the group of each image; an image without one is a group of its own.
    """
    further = {group_column} if group_column else set()
    tables = _tables(source, further)
    if not tables:
        refuse_surplus(source, further)
    if len(tables) != 1:
        header = ",".join(["image", "labels", *further])
        raise click.ClickException(
            f"{source} has {len(tables)} CSV files with the header {header}; name one"
        )
    names, splits, present, unknown, groups = [], [], [], [], []
    for number, row in read_records(tables[0]):
        where = f"{tables[0]}:{number}"
        names.append(checked_name(where, row["image"]))
        splits.append(row.get("split", "train"))
        if splits[-1] not in SPLITS:
            raise click.ClickException(
                f"{where}: split is {splits[-1]!r}; give one of {', '.join(SPLITS)}"
            )
        present.append(_split_labels(row["labels"]))
        unknown.append(_split_labels(row.get("unknown", "")))
        groups.append(row.get(group_column or "", "").strip() or names[-1])
    labels = sorted({label for cells in (*present, *unknown) for label in cells})
    checked_labels(str(tables[0]), labels)
    manifest = make_manifest(source, names, splits, labels, present, unknown)
    return replace(manifest, groups=np.array(groups)) if group_column else manifest


def refuse_surplus(source: Path, further: Collection[str] = ()) -> None:
    """Raise click.ClickException if a table has a column that is not known.

    further: columns that are known besides the usual ones.
    """
    for path, header in _headers(source).items():
        others = [column for column in header if column not in _ALLOWED.union(further)]
        if _NEEDED <= set(header) and others:
            raise click.ClickException(
                f"{path} has a column {others[0]!r}, which is not one of {_KNOWN}; remove it, or, "
                "if it names groups of images such as scenes, use "
                f"`nuswide prepare --group_column {shlex.quote(others[0])}`"
            )


def _tables(source: Path, further: Collection[str] = ()) -> list[Path]:
    return [
        path
        for path, header in _headers(source).items()
        if _NEEDED.union(further) <= set(header) <= _ALLOWED.union(further)
        and first_duplicate(header) is None
    ]


def _headers(source: Path) -> dict[Path, list[str]]:
    """Return the column names of each table that may be a source, by path."""
    if source.is_dir():
        paths = [p for p in sorted(source.iterdir()) if has_suffix(p, ".csv")]
    else:
        paths = [source]
    return {path: first_line(path).split(",") for path in paths if not Manifest.is_saved_as(path)}


def _split_labels(cell: str) -> list[str]:
    return [label.strip() for label in cell.split(";") if label.strip()]
