"""The images of a source: a folder, a glob, a text file or a data set.

Their paths are written into one file in a fixed order, with only a part of them in memory. Only
files of a folder whose suffix is not one of an image are opened, to look at the start of them.
"""

import csv
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

from nuswide.core.wording import counted
from nuswide.data.dataset import SAMPLE, load_manifest
from nuswide.data.importers import IMPORTERS
from nuswide.data.manifest import Manifest
from nuswide.deployment.batch.decode import is_image

_SORTED_AT_ONCE = 100_000
T = TypeVar("T")


@dataclass(frozen=True)
class ImageList:
    """The images of a source: `file` contains their absolute paths, each terminated by NUL.

    kind: the kind of source that was detected. digest: 16 hex digits over the paths in order.
    data_digest: that of the manifest if the source is a data set, otherwise equal to digest.
    skipped: the number of files of a folder that are no images.
    """

    file: Path
    kind: str
    count: int
    digest: str
    data_digest: str
    skipped: int = 0


def list_images(source: str, file: Path, skipped: Path) -> ImageList:
    """Write the paths of a source's images into a file.

    source: annotations in any format of read_manifest, a folder (its images at any depth, except
    hidden ones), one image, a glob, or a text file with one path a line, relative to that file.
    skipped: a CSV for the paths of a folder's files that are no images, written if there are any.
    Raises click.ClickException if the source is none of these or has no image.
    """
    skipped.unlink(missing_ok=True)
    found = _Skipping(skipped)
    manifest = _manifest(source)
    paths: Iterable[bytes]
    if manifest is not None:
        kind, paths = "data set", (os.fsencode(manifest.root / name) for name in manifest.names)
    elif os.path.isdir(source):
        kind, paths = "folder", found.images(_sort_on_disk(_walk(os.path.abspath(source))))
    elif os.path.isfile(source) and is_image(source):
        kind, paths = "image file", iter([os.fsencode(source)])
    elif os.path.isfile(source):
        kind, paths = "list", _lines(Path(source))
    elif glob.has_magic(source):
        matches = glob.iglob(os.path.abspath(source), recursive=True)
        kind, paths = "glob", _sort_on_disk(os.fsencode(p) for p in matches if os.path.isfile(p))
    else:
        raise click.ClickException(
            f"{source} does not exist; give a folder, a quoted glob, a data set or a text file "
            "with one path a line"
        )
    count, digest = _write(paths, file)
    if not count:
        file.unlink()
        skipped.unlink(missing_ok=True)
        raise click.ClickException(f"{source} contains no images{found}")
    data_digest = digest if manifest is None else manifest.digest
    return ImageList(file, kind, count, digest, data_digest, found.count)


def _write(paths: Iterable[bytes], file: Path) -> tuple[int, str]:
    """Write the absolute paths, each terminated by NUL; return their number and their digest."""
    count, digest = 0, hashlib.sha256()
    with file.open("wb") as out:
        for path in paths:
            record = os.path.abspath(path) + b"\0"
            out.write(record)
            digest.update(record)
            count += 1
    return count, digest.hexdigest()[:16]


class _Skipping:
    """Leaves out files that are no images, counts them and lists them in a CSV."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.count = 0

    def __str__(self) -> str:
        found = counted(self.count, "file of another kind", "files of other kinds")
        return f", but {found}" if self.count else ""

    def images(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the images among the paths."""
        with self._file.open("w", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path"])
            for path in paths:
                name = os.fsdecode(path)
                if is_image(name):
                    yield path
                else:
                    writer.writerow([writable(name)])
                    self.count += 1
        if not self.count:
            self._file.unlink()


def read_chunks(file: Path, size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the listed paths in numbered chunks of `size`."""
    with file.open("rb") as listed:
        yield from enumerate(_chunks((os.fsdecode(r) for r in _records(listed)), size))


def writable(path: str) -> str:
    """Return a path as text, with bytes that are not UTF-8 as backslash escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _manifest(source: str) -> Manifest | None:
    """Return the manifest of a source that is a data set, otherwise None."""
    path = Path(source)
    if source == SAMPLE or (path.is_dir() and Manifest.is_saved_in(path)):
        return load_manifest(source, skip_rejected=True)
    if os.path.exists(source) and any(form.detects(path) for form in IMPORTERS.values()):
        return load_manifest(source, skip_rejected=True)
    return None


def _walk(folder: str) -> Iterator[bytes]:
    """Yield the files below a folder but hidden ones; links to folders are not followed."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
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
