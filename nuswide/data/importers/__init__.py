"""Importers, which read annotations in one format each into a Manifest.

Owns the reading and checking of annotation files, each of which may be gzipped. Never locates or
decodes an image. To add a format, write `detects` and `read` and add them to IMPORTERS.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from nuswide.config import lookup
from nuswide.data.importers import article, lists, objects, official, tables
from nuswide.data.importers.article import read_article_json
from nuswide.data.manifest import Manifest
from nuswide.data.repeated import describe_repeated, find_repeated

__all__ = ["IMPORTERS", "Importer", "read_annotations", "read_article_json", "read_samples"]


@dataclass(frozen=True)
class Importer:
    """An annotation format. looks: how to recognize its files, for error messages."""

    looks: str
    detects: Callable[[Path], bool]
    read: Callable[[Path], Manifest]


# Tried in this order.
IMPORTERS = {
    "article": Importer("train.json and test.json", article.detects, article.read_article_json),
    "nuswide": Importer(
        "ImageList/ and Groundtruth/ as NUS-WIDE was published", official.detects, official.read
    ),
    "voc": Importer("Annotations/*.xml", objects.detects_voc, objects.read_voc),
    "coco": Importer("instances_*.json", objects.detects_coco, objects.read_coco),
    "hashnet": Importer(
        "*train*.txt and *test*.txt, a path and 81 numbers per line",
        lists.detects_hashnet, lists.read_hashnet,
    ),
    "indexed": Importer(
        "*.csv or *.txt, a name and label numbers per line: a.jpg,3 17",
        lists.detects_indexed, lists.read_indexed,
    ),
    "csv": Importer(
        "a .csv file with the header image,labels[,split][,unknown]", tables.detects, tables.read
    ),
}  # fmt: skip


def read_annotations(source: Path, format: str = "auto") -> Manifest:
    """Read a prepared folder, or annotations in a format of IMPORTERS, detected unless given.

    Image names are relative to the folder. Raises click.ClickException, naming file and line, for
    invalid annotations, and for images that occur more than once.
    """
    manifest = read_samples(source, format)
    if repeated := find_repeated(manifest):
        raise click.ClickException(
            f"{source}: {describe_repeated(repeated)}; keep one of each, or prepare the data with "
            "`nuswide prepare --duplicates merge` or `first`"
        )
    return manifest


def read_samples(source: Path, format: str = "auto", group_column: str | None = None) -> Manifest:
    """Read annotations as read_annotations does, but with images that occur more than once.

    group_column: a column of a CSV table, see tables.read.
    """
    if not os.path.exists(source):  # Path.exists() raises for a name that is too long
        raise click.ClickException(
            f"there is no data folder {source}; name one with train.json and test.json or the like"
        )
    if group_column is not None:
        if not group_column.strip():
            raise click.UsageError(
                "group_column is empty; give the name of a column, or leave it out"
            )
        if Manifest.is_saved_in(source):
            raise click.ClickException(
                f"{source} is prepared already; give its source with the group_column"
            )
        if format not in ("auto", "csv"):
            raise click.UsageError(f"group_column is a column of the format csv, not of {format}")
        return tables.read(source, group_column)
    if format == "auto" and Manifest.is_saved_in(source):
        try:
            return Manifest.load(source)
        except ValueError as error:
            raise click.ClickException(f"{error}; prepare it again") from error
    if format != "auto":
        return lookup(IMPORTERS, "format", format).read(source)
    for importer in IMPORTERS.values():
        if importer.detects(source):
            return importer.read(source)
    tables.refuse_surplus(source)
    known = "; ".join(f"{name}: {importer.looks}" for name, importer in IMPORTERS.items())
    raise click.ClickException(
        f"{source} has no train.json or small_train.json, nor other annotations; put one there "
        f"({known})"
    )
