"""Text files, gzipped or not: bytes, lines, tables, JSON.

Owns the only reader of text that a user wrote, whatever it is for: it takes a byte order mark, gzip
and any line end, and limits the size. Knows nothing of what the files contain.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

# A gzipped file may expand without limit. COCO's largest has 0.5 GB, NUS-WIDE's 269,648 lines.
_MAX_BYTES, _MAX_LINES = 2**30, 5_000_000


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if its first bytes are gzip's."""
    file = path.open("rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path)  # type: ignore[return-value]
    file.seek(0)
    return file


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if it is gzipped."""
    try:
        with open_binary(path) as file:
            content: bytes = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise click.ClickException(f"cannot read {path}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise click.ClickException(f"{path} is above {_MAX_BYTES / 1e9:.1f} GB; split it")
    return content


def _read_listed(path: Path) -> bytes:
    """Read a file that has no more lines than a list or a table of a data set."""
    content = read_bytes(path)
    if content.count(b"\n") > _MAX_LINES:
        raise click.ClickException(f"{path} has above {_MAX_LINES:,} lines; split it")
    return content


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, without blank ones at its end."""
    try:
        # Not splitlines(), which also splits at characters that a name may contain.
        lines = _read_listed(path).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not a UTF-8 text file: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row of a CSV file, the header's first.

    Blank lines are skipped. Raises click.ClickException, naming the line, for a row with more or
    fewer cells than the header.
    """
    # Decoded in pieces: scores of many labels are large.
    text = io.TextIOWrapper(io.BytesIO(_read_listed(path)), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    n_cells = 0
    try:
        for row in reader:
            n_cells = n_cells or len(row)
            if row and len(row) != n_cells:
                raise click.ClickException(
                    f"{path}:{reader.line_num} has {len(row)} cells, but the header {n_cells}"
                )
            if row:
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not a UTF-8 text file: {error}") from error
    except csv.Error as error:
        raise click.ClickException(f"{path} is not valid CSV: {error}") from error


def read_records(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the cells by column name of each row of a CSV file.

    Raises click.ClickException if the header lacks one of the needed columns.
    """
    rows = read_table(path)
    _, header = next(rows, (0, []))
    if not set(needed) <= set(header):
        raise click.ClickException(f"{path} needs the header {','.join(needed)}")
    for number, row in rows:
        yield number, dict(zip(header, row, strict=True))


def first_line(path: Path) -> str:
    """Read the first line of a file, to detect its format; empty if it cannot be read."""
    try:
        with open_binary(path) as file:
            return file.read(4096).decode("utf-8-sig", errors="replace").partition("\n")[0].rstrip()
    except (OSError, EOFError, zlib.error):
        return ""


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} is not valid JSON: {error}") from error


def has_suffix(path: Path, *suffixes: str) -> bool:
    """Return whether a file's name ends in one of these, in any case, perhaps before .gz."""
    return path.name.lower().removesuffix(".gz").endswith(suffixes)


def find_file(folder: Path, *names: str) -> Path | None:
    """Find the first of these files in a folder, plain or gzipped, ignoring case."""
    if not folder.is_dir():
        return None
    present = {path.name.lower(): path for path in folder.iterdir()}
    candidates = (candidate for name in names for candidate in (name, f"{name}.gz"))
    return next((present[c.lower()] for c in candidates if c.lower() in present), None)
