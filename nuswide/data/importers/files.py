"""What all importers share: reading a file that may be gzipped, and names that can be trusted.

Owns the limits on what an annotation file may be and say.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import unknown_name
from nuswide.data.manifest import SPLITS, Manifest

# A gzipped file may grow without end. COCO's largest has 0.5 GB, NUS-WIDE's 269,648 lines.
_MOST_BYTES, _MOST_LINES = 2**30, 5_000_000
# Control characters and halves of surrogate pairs: JSON can say them, text files cannot hold them.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise click.ClickException(f"cannot read {path}: {error}") from error
    if len(content) > _MOST_BYTES:
        raise click.ClickException(f"{path} is above {_MOST_BYTES / 1e9:.1f} GB; split it")
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without the blank ones at its end."""
    content = read_bytes(path)
    if content.count(b"\n") > _MOST_LINES:
        raise click.ClickException(f"{path} has above {_MOST_LINES:,} lines; split it")
    try:
        # Not splitlines(), which parts lines at characters that a name may hold.
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is no text file in UTF-8: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def first_line(path: Path) -> str:
    """The beginning of a file, to tell what it is; empty if it is no text."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(4096).decode("utf-8-sig", errors="replace").partition("\n")[0].rstrip()
    except (OSError, EOFError, zlib.error):
        return ""


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} is not valid JSON: {error}") from error


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of some files that a folder has, plain or gzipped, in whatever case."""
    if not folder.is_dir():
        return None
    present = {path.name.lower(): path for path in folder.iterdir()}
    candidates = (candidate for name in names for candidate in (name, f"{name}.gz"))
    return next((present[c.lower()] for c in candidates if c.lower() in present), None)


def split_in_name(path: Path) -> str | None:
    """The split that a file's name has among its words; train2017 and 81_train count, too."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split in SPLITS if split in words), None)


def checked_name(where: str, name: str) -> str:
    """Check that an image name stays in its folder and on one line; gives it with plain slashes."""
    pure = PurePosixPath(name)
    if not pure.parts or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise click.ClickException(f"{where}: image_name {name!r} must stay inside the folder")
    if _UNWRITABLE.search(name):
        raise click.ClickException(
            f"{where}: image_name {name!r} is no plain line of text; rename the picture"
        )
    return str(pure)


def checked_labels(where: str, labels: Sequence[Any]) -> list[str]:
    """Check that labels are plain texts, and none is there twice."""
    if not all(isinstance(label, str) and label for label in labels):
        raise click.ClickException(f'{where}: every one of "labels" must be a text')
    unwritable = next(filter(_UNWRITABLE.search, labels), None)
    if unwritable is not None:
        raise click.ClickException(
            f"{where}: label {unwritable!r} is no plain line of text; mend it"
        )
    doubled = first_double(labels)
    if doubled is not None:
        raise click.ClickException(f'{where}: "labels" has {doubled!r} twice; keep one')
    return list(labels)


def first_double(names: Iterable[str]) -> str | None:
    """The first name that is there again."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def make_manifest(
    source: Path,
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    present: Iterable[Iterable[str]],
    unknown: Iterable[Iterable[str]] | None = None,
) -> Manifest:
    """Build a Manifest from each sample's label names, and the names of what is not known of it."""
    targets = label_matrix(source, names, labels, present)
    known = None
    if unknown is not None:
        known = label_matrix(source, names, labels, unknown) == 0
        known |= targets == 1
    return manifest_of(source, names, splits, labels, targets, known)


def manifest_of(
    source: Path,
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    targets: NDArray[np.uint8],
    known: NDArray[np.bool_] | None = None,
) -> Manifest:
    """Build a Manifest that has something to learn from, no image twice. targets, known: (N, C)."""
    doubled = first_double(names)
    if doubled is not None:
        where = " and ".join(s for n, s in zip(names, splits, strict=True) if n == doubled)
        raise click.ClickException(f"{source}: {doubled!r} is there twice, in {where}; keep one")
    if not targets.any():
        raise click.ClickException(
            f"{source}: no sample has any label; there is nothing to learn from"
        )
    return Manifest(
        root=source if source.is_dir() else source.parent,
        names=tuple(names),
        labels=tuple(labels),
        targets=targets,
        splits=np.array(splits),
        known=None if known is None or known.all() else known,
    )


def label_matrix(
    source: Path, names: Sequence[str], labels: Sequence[str], rows: Iterable[Iterable[str]]
) -> NDArray[np.uint8]:
    """Turn lists of label names into rows of 0 and 1; (N, C)."""
    column = {label: c for c, label in enumerate(labels)}
    matrix = np.zeros((len(names), len(labels)), dtype=np.uint8)
    for row, (name, chosen) in enumerate(zip(names, rows, strict=True)):
        for label in chosen:
            if label not in column:
                raise click.ClickException(
                    f"{source}: {name}: {unknown_name('label', label, column)}; "
                    'mend the sample, or add it to "labels"'
                )
            matrix[row, column[label]] = 1
    return matrix
