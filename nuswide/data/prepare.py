"""Preparation: annotations in any known format become a folder that training reads.

Owns the order of import, protocol and split. Decodes no image.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from nuswide.core.files import atomic_write
from nuswide.data.importers import read_samples
from nuswide.data.label_names import map_labels, read_label_map
from nuswide.data.locate import describe_missing, find_images
from nuswide.data.manifest import Manifest
from nuswide.data.protocols import apply_protocol
from nuswide.data.repeated import describe_repeated, find_repeated, keep_one, repeated_rows
from nuswide.data.splits import groups_across_splits, read_splits

_MISSING, _REPEATED = "missing.csv", "duplicates.csv"


def prepare(
    source: Path,
    out: Path,
    *,
    format: str = "auto",
    protocol: str = "source",
    labels: str = "all",
    unlabelled: str = "keep",
    order: str = "listed",
    seed: int = 0,
    split_file: Path | None = None,
    images: Path | None = None,
    duplicates: str = "refuse",
    group_column: str | None = None,
    label_map: Path | None = None,
) -> Manifest:
    """Read annotations, apply a protocol, and save the Manifest into the folder `out`.

    split_file: a CSV file with the columns image and split, which replaces the source's split.
    images: the folder of the images, by default the source's. duplicates: `merge` or `first` keeps
    one sample of an image that occurs more than once. group_column: a column of a CSV source;
    images of one group stay together when val or test is split off. label_map: a CSV file with the
    columns from and to, which renames, merges and drops labels before any are selected. The others
    are those of read_annotations and apply_protocol. Missing and repeated images are listed in
    `out`.
    """
    if Manifest.is_saved_in(out):
        raise click.ClickException(f"{out} holds a prepared data set already; name another folder")
    manifest = _keep_one(read_samples(source, format, group_column), source, out, duplicates)
    manifest = _with_files(manifest, label_map, split_file)
    _report_groups(manifest)
    manifest = apply_protocol(
        manifest, protocol, labels=labels, unlabelled=unlabelled, order=order, seed=seed
    )
    _require_labels(manifest, source)
    manifest = replace(manifest, root=(images or manifest.root).resolve())
    with _writing(out):
        manifest.save(out)
    _report_missing(manifest, out)
    return manifest


def _keep_one(manifest: Manifest, source: Path, out: Path, duplicates: str) -> Manifest:
    """Keep one sample of each image, or refuse those that occur more than once."""
    repeated = find_repeated(manifest)
    if not repeated:
        if (out / _REPEATED).is_file():  # of an earlier attempt
            (out / _REPEATED).unlink()
        return manifest
    _write_csv(out / _REPEATED, repeated_rows(repeated))
    said = f"{source}: {describe_repeated(repeated)}; {out / _REPEATED} lists them"
    if duplicates == "refuse":
        raise click.ClickException(f"{said}; keep one of each, or give --duplicates merge or first")
    kept = {
        "merge": "one sample of each is kept, with the labels of all",
        "first": "the first is kept",
    }
    click.echo(f"{said}; {kept[duplicates]}", err=True)
    return keep_one(manifest, repeated, merge=duplicates == "merge")


def _with_files(manifest: Manifest, label_map: Path | None, split_file: Path | None) -> Manifest:
    """Take the names of labels and the splits from files, where they are given."""
    if label_map:
        manifest = map_labels(manifest, read_label_map(label_map, manifest.labels))
    if split_file:
        manifest = replace(manifest, splits=read_splits(split_file, manifest.names))
    return manifest


def _require_labels(manifest: Manifest, source: Path) -> None:
    if not manifest.targets.any():
        raise click.ClickException(f"{source}: no image is left that has a label; keep more labels")


def _report_groups(manifest: Manifest) -> None:
    if across := groups_across_splits(manifest):
        click.echo(
            f"groups that are in several splits of the source: {len(across)}, {across[0]!r} first; "
            "--split_file sets other splits",
            err=True,
        )


def _report_missing(manifest: Manifest, out: Path) -> None:
    """Name the images that are not there; whether they matter is for training to say."""
    _, missing = find_images(manifest)
    (out / _MISSING).unlink(missing_ok=True)
    if not missing:
        return
    _write_csv(out / _MISSING, [("image",), *((name,) for name in missing)])
    others = ", or train with skip_rejected=true to leave them out"
    if len(missing) == len(manifest):
        others = ", or name their folder by --images"
    click.echo(
        f"{describe_missing(manifest, missing)}{others}; {out / _MISSING} lists them", err=True
    )


def _write_csv(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with _writing(path.parent), atomic_write(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write into {out}: {error.strerror}") from error
