"""The images of a source: a folder, a glob, a text file or a data set.

Their paths are written into one file in a fixed order, with only a part of them in memory. No image
is opened.
"""

import glob
import hashlib
import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

import click

from nuswide.data.dataset import SAMPLE, load_manifest
from nuswide.data.importers import IMPORTERS
from nuswide.data.manifest import Manifest

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm",
)  # fmt: skip
_SORTED_AT_ONCE = 100_000
T = TypeVar("T")


@dataclass(frozen=True)
class ImageList:
    """The images of a source: `file` contains their absolute paths, each terminated by NUL.

    kind: the kind of source that was detected. digest: 16 hex digits over the paths in order.
    data_digest: that of the manifest if the source is a data set, otherwise equal to digest.
    """

    file: Path
    kind: str
    count: int
    digest: str
    data_digest: str


def list_images(source: str, file: Path) -> ImageList:
    """Write the paths of a source's images into a file.

    source: annotations in any format of read_manifest, a folder (its files with a suffix of
    SUFFIXES at any depth, except hidden ones), one image, a glob, or a text file with one path a
    line, relative to that file. Raises click.ClickException if it is none of these or has no image.
    """
    manifest = _manifest(source)
    paths: Iterable[bytes]
    if manifest is not None:
        kind, paths = "data set", (os.fsencode(manifest.root / name) for name in manifest.names)
    elif os.path.isdir(source):
        kind, paths = "folder", _sort_on_disk(_walk(os.path.abspath(source)))
    elif os.path.isfile(source) and source.lower().endswith(SUFFIXES):
        kind, paths = "image file", iter([os.fsencode(source)])
    elif os.path.isfile(source):
        kind, paths = "list", _lines(Path(source))
    elif glob.has_magic(source):
        found = glob.iglob(os.path.abspath(source), recursive=True)
        kind, paths = "glob", _sort_on_disk(os.fsencode(p) for p in found if os.path.isfile(p))
    else:
        raise click.ClickException(
            f"{source} does not exist; give a folder, a quoted glob, a data set or a text file "
            "with one path a line"
        )
    count, digest = 0, hashlib.sha256()
    with file.open("wb") as out:
        for path in paths:
            record = os.path.abspath(path) + b"\0"
            out.write(record)
            digest.update(record)
            count += 1
    if not count:
        file.unlink()
        raise click.ClickException(
            f"{source} contains no images; their suffixes are {' '.join(SUFFIXES)}"
        )
    short = digest.hexdigest()[:16]
    return ImageList(file, kind, count, short, short if manifest is None else manifest.digest)


def read_chunks(file: Path, size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the listed paths in numbered chunks of `size`."""
    with file.open("rb") as listed:
        yield from enumerate(_chunks((os.fsdecode(r) for r in _records(listed)), size))


def _manifest(source: str) -> Manifest | None:
    """Return the manifest of a source that is a data set, otherwise None."""
    path = Path(source)
    if source == SAMPLE or (path.is_dir() and Manifest.is_saved_in(path)):
        return load_manifest(source, skip_rejected=True)
    if os.path.exists(source) and any(form.detects(path) for form in IMPORTERS.values()):
        return load_manifest(source, skip_rejected=True)
    return None


def _walk(folder: str) -> Iterator[bytes]:
    """Yield the images below a folder; symbolic links to folders are not followed."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        yield os.fsencode(entry.path)
        except OSError as error:
            raise click.ClickException(f"cannot list {error.filename}: {error.strerror}") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the paths in a text file, relative to its folder; blank lines are skipped."""
    folder = os.fsencode(path.absolute().parent)
    with path.open("rb") as file:
        for line in file:
            name = line.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n")
            if b"\0" in name or len(name) > 4096:
                raise click.ClickException(f"{path} is not a text file with one path a line")
            if name.strip():
                yield os.path.join(folder, name)


def _sort_on_disk(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Sort any number of paths by merging sorted runs on disk."""
    with ExitStack() as stack:
        runs = []
        for chunk in _chunks(paths, _SORTED_AT_ONCE):
            run = stack.enter_context(tempfile.TemporaryFile())
            run.writelines(path + b"\0" for path in sorted(chunk))
            run.seek(0)
            runs.append(_records(run))
        yield from heapq.merge(*runs)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _records(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the NUL-terminated records of a file; no path contains NUL."""
    rest = b""
    while block := file.read(1 << 16):
        *records, rest = (rest + block).split(b"\0")
        yield from records
