"""The file of a cache: a row of numbers for each image, then what tells whether the row is current.

Owns the format, mapping it into memory, and its room on disk.

    >>> layout = RowFile((5, 512, 2, 2), np.float32, n_states=1)
    >>> layout.n_bytes
    41000
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np

from nuswide.core.files import reserve_bytes


class Rows(NamedTuple):
    """An open file. values: (N, ...). states: (N, K), 0 for a row that is not on disk yet."""

    values: "np.memmap[Any, np.dtype[Any]]"
    states: "np.memmap[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True)
class RowFile:
    """The layout of a file. shape, dtype: of its values (N, ...). n_states: uint64 for each row."""

    shape: tuple[int, ...]
    dtype: type[np.generic]
    n_states: int

    @property
    def n_bytes(self) -> int:
        """The size of the file."""
        return self._values_bytes + 8 * self.n_states * self.shape[0]

    @property
    def _values_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self, path: Path, mode: Literal["r", "r+"]) -> Rows | None:
        """Map a file into memory; None if there is none of this size."""
        if self.shape[0] == 0 or file_size(path) != self.n_bytes:
            return None
        values = np.memmap(path, self.dtype, mode, shape=self.shape)
        shape = (self.shape[0], self.n_states)
        return Rows(values, np.memmap(path, np.uint64, mode, self._values_bytes, shape))

    def open_new(self, path: Path, *, what: str, way_out: str) -> Rows:
        """Continue an unfinished file, or reserve disk space for all of a new one.

        what, way_out: for the click.ClickException that is raised if the disk is too small.
        """
        if (rows := self.open(path, "r+")) is None:
            path.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free
            if self.n_bytes > free:
                raise click.ClickException(
                    f"{what} take {self.n_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are "
                    f"free in {path.parent.parent}; free some (`nuswide cache` lists caches), "
                    f"give cache=DIR on a larger disk, or {way_out}"
                )
            with path.open("wb") as file:
                reserve_bytes(file, self.n_bytes)
            rows = self.open(path, "r+")
            assert rows is not None
        return rows


def file_size(path: Path) -> int:
    """Return the bytes of a file, 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
