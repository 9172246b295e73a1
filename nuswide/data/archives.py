"""Safe extraction of untrusted archives.

Owns the checks of their members. Never runs or unpickles their content, and never writes outside
the given folder.
"""

import bz2
import errno
import functools
import gzip
import io
import itertools
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple

import click
from tqdm import tqdm

CHUNK_BYTES = 2**16
MAX_READ_BYTES = 2**20
MAX_MEMBERS = 1_000_000
MAX_UNPACKED_BYTES = 200 * 10**9
MAX_RATIO = 100  # of unpacked to packed size; about 1 for photographs
SMALL_BYTES = 10 * 2**20  # accepted at any ratio: tar pads small files with zeros
_UNPACKERS: dict[bytes, Callable[[Any], Any]] = {
    rb"\x1f\x8b": gzip.open,
    rb"BZh[1-9]1AY": bz2.open,  # a tar starts with a file name, which may be BZhang.jpg
    rb"\xfd7zXZ\x00": lzma.open,
}


class _Member(NamedTuple):
    name: str
    size_bytes: int
    is_folder: bool
    problem: str  # why it is refused, or empty
    open: Callable[[], Any]


class _Bounded(io.BufferedIOBase):
    """A stream for tarfile that raises after `limit` bytes, or at a huge header.

    tarfile would read such a header into memory as a whole.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_READ_BYTES:
            raise ValueError("a header in it is too large")
        content = self._stream.read(size)
        self.seek(0, io.SEEK_CUR)
        return content

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        if position + (self._stream.tell() if whence else 0) > self._limit:
            raise _bomb(self._limit)
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()


def extract(archive: Path, out: Path) -> int:
    """Unpack a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip into a new folder; return the file count.

    Atomic: every member is checked before the first is written, and `out` appears when the last is
    complete. Raises click.ClickException, a single line, naming the first refused member.
    """
    refuse_filled(out)
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open("rb") as file:
            limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
            limit = min(limit, MAX_UNPACKED_BYTES)
            members = _checked(_members(file, target, limit), limit)
            needed, free = sum(m.size_bytes for m in members), shutil.disk_usage(target.parent).free
            if needed > free:
                raise OSError(errno.ENOSPC, f"it needs {needed} bytes, {free} are free; make room")
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}.", dir=target.parent
            ) as parent:
                folder = Path(parent) / target.name  # has the default mode, unlike its parent
                folder.mkdir()
                for member in tqdm(members, desc=target.name, unit="file", disable=None):
                    _write(member, folder)
                folder.replace(target)
    except Exception as error:  # a parser of hostile bytes may raise anything
        if isinstance(error, OSError) and error.errno:
            reason = f"{error.strerror}"
        else:
            words = " ".join(str(error).split()) or type(error).__name__
            reason = f"{words:.300}; get a valid .tar, .tar.gz, .tar.bz2, .tar.xz or .zip of files"
        raise click.ClickException(f"cannot unpack {archive} into {out}: {reason}") from error
    return sum(not member.is_folder for member in members)


def refuse_filled(out: Path) -> None:
    """Raise click.ClickException if `out` exists and is not an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise click.ClickException(f"{out} exists already; move it away, or name a new folder")


def _members(file: IO[bytes], out: Path, limit: int) -> Iterator[_Member]:
    magic = file.read(8)
    file.seek(0)
    if magic.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip_members(zipfile.ZipFile(file))
    unpackers = [unpack for start, unpack in _UNPACKERS.items() if re.match(start, magic)]
    return _tar_members(_Bounded(unpackers[0](file) if unpackers else file, limit), out)


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = "is encrypted" if info.flag_bits & 1 else ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link" if kind == stat.S_IFLNK else "is a device or the like"
        name, is_folder = info.orig_filename, info.is_dir()  # filename is cut at a NUL
        opened = functools.partial(archive.open, info)
        yield _Member(name, 0 if is_folder else info.file_size, is_folder, problem, opened)


def _tar_members(stream: _Bounded, out: Path) -> Iterator[_Member]:
    archive = tarfile.open(fileobj=stream, mode="r:")
    for info in archive:
        opened = functools.partial(archive.extractfile, info)
        yield _Member(info.name, info.size, info.isdir(), _tar_problem(info, out), opened)
    # tarfile treats garbage, or a cut between two members, as the end; a real end is a zero block.
    stream.seek(archive.offset)
    if stream.read(512) != bytes(512):
        raise EOFError("it is cut short or damaged")
    while stream.read(CHUNK_BYTES):
        pass  # up to the checksum, which is verified at the end


def _tar_problem(info: tarfile.TarInfo, out: Path) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    if not (info.isreg() or info.isdir()) or info.issparse():
        return "is a device or the like"
    if info.size < 0:
        return "has a negative size"
    if not hasattr(tarfile, "data_filter"):  # before Python 3.11.4
        return ""
    try:
        tarfile.data_filter(info, str(out))  # a second check, PEP 706
    except (tarfile.FilterError, ValueError) as error:
        return f"is refused by tarfile ({type(error).__name__})"
    return ""


def _path_problem(name: str) -> str:
    if PureWindowsPath(name).anchor:
        return "has an absolute path"
    if "\\" in name or "\0" in name or ".." in name.split("/"):
        return "leads out of the folder, or tries to"
    return "" if name else "has no name"


def _checked(members: Iterable[_Member], limit: int) -> list[_Member]:
    """Return all members, or raise ValueError at the first refused one."""
    kept: list[_Member] = []
    is_folder: dict[str, bool] = {}
    total = 0
    for member in members:
        problem = _path_problem(member.name) or member.problem
        # Some file systems treat these names as equal.
        name = unicodedata.normalize("NFC", member.name.casefold())
        steps = [part for part in name.split("/") if part not in ("", ".")]
        paths = list(itertools.accumulate(steps, "{}/{}".format))
        for path in paths if member.is_folder else paths[:-1]:
            if not is_folder.setdefault(path, True):
                problem = problem or "is a file and a folder"
        if not member.is_folder:
            if not paths or paths[-1] in is_folder:
                problem = problem or "is there twice"
            else:
                is_folder[paths[-1]] = False
        if problem:
            raise ValueError(f"{member.name!r:.200} {problem}")
        total += member.size_bytes
        kept.append(member)
        if total > limit:
            raise _bomb(limit)
        if len(kept) > MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS} members")
    if not kept:
        raise ValueError("it is empty")
    return kept


def _bomb(limit: int) -> ValueError:
    return ValueError(f"it unpacks to more than {limit} bytes, like a decompression bomb")


def _write(member: _Member, folder: Path) -> None:
    path = folder / member.name
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        member.open() as source,
        path.open("xb") as target,
    ):  # its mode is the umask's, not the archive's
        shutil.copyfileobj(source, target, CHUNK_BYTES)
        if target.tell() != member.size_bytes:
            raise EOFError(f"{member.name!r:.200} is cut short")
