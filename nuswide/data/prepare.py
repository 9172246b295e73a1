"""Preparation: annotations in any known format become a folder that training reads.

Owns the order of import, protocol and split. Decodes no image.

    manifest = prepare(Path("NUS-WIDE"), Path("data/nuswide"), protocol="official-labelled")
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from nuswide.data.importers import read_annotations
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.data.protocols import apply_protocol
from nuswide.data.text_files import read_records


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
) -> Manifest:
    """Read annotations, apply a protocol, and save the Manifest into the folder `out`.

    split_file: a CSV file with the columns image and split, which replaces the source's split.
    images: the folder of the images, by default the source's. The other options are those of
    read_annotations and apply_protocol.
    """
    if Manifest.is_saved_in(out):
        raise click.ClickException(f"{out} holds a prepared data set already; name another folder")
    manifest = read_annotations(source, format)
    if split_file:
        manifest = replace(manifest, splits=_read_splits(split_file, manifest.names))
    manifest = apply_protocol(
        manifest, protocol, labels=labels, unlabelled=unlabelled, order=order, seed=seed
    )
    if not manifest.targets.any():
        raise click.ClickException(f"{source}: no image is left that has a label; keep more labels")
    manifest = replace(manifest, root=(images or manifest.root).resolve())
    try:
        out.mkdir(parents=True, exist_ok=True)
        manifest.save(out)
    except OSError as error:
        raise click.ClickException(f"cannot write into {out}: {error.strerror}") from error
    return manifest


def _read_splits(path: Path, names: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
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
            f"{path} has no split for {len(missing)} images, {missing[0]!r} first; add them"
        )
    return np.array([splits[name] for name in names])
