"""Files that survive kills and power cuts, and locks between processes.

Owns the only way to replace a file atomically, and the only lock between processes. Knows nothing
of what the files contain.

    >>> with exclusive_lock(folder / "lock", busy="another process is at work"):
    ...     with atomic_write(folder / "about.json") as file:
    ...         file.write("{}")
    2
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click
from filelock import FileLock, Timeout


def temporary_path(path: Path) -> Path:
    """The file beside `path` that atomic_write fills; readers of Parquet skip its leading _."""
    return path.with_name(f"_{path.name}.new")


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file whose content takes the place of `path` once it is complete and on disk.

    Whenever the process is killed or the power fails, `path` has its old content or the new one.
    mode: "w" for UTF-8 text with newlines as written, "wb" for bytes. On an error the old file
    stays, and the temporary one is removed. Writers of one path must hold a lock.
    """
    temporary = temporary_path(path)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk: without it, a power cut may undo a rename."""
    with suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_data(descriptor: int) -> None:
    """Write a file's data to disk, without its times where the system can leave them out."""
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS has no fdatasync


def reserve_bytes(file: IO[bytes], size: int) -> None:
    """Allocate the disk space of an empty file of `size` bytes, so that later writes do not fail.

    Raises OSError if the disk is too small.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(2**20)  # macOS: a truncated file would be sparse, with nothing reserved
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


@contextmanager
def exclusive_lock(path: Path, *, busy: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; the lock ends with the process, however that ends.

    busy: a message for when another process holds the lock: raised as a click.ClickException, or,
    with wait, printed before waiting. The lock file itself stays.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise click.ClickException(busy) from None
        if busy:
            click.echo(busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
