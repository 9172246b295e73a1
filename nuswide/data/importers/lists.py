"""Lists of NUS-WIDE images with their labels as numbers, one image per line.

`hashnet`: a path and 81 numbers 0 or 1, as published with HashNet (Cao et al., ICCV 2017).
`indexed`: a name, a comma and the indices of its labels, from 0: `a.jpg,3 17 42`.
The split is the word train, val or test in a file's name, or train if there is none.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.data.importers.files import checked_name, manifest_of, split_in_name
from nuswide.data.manifest import Manifest
from nuswide.data.text_files import first_line, has_suffix, read_lines

# In the order of Concepts81.txt, which is alphabetical.
LABELS_81 = tuple(
    "airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds "
    "computer coral cow dancing dog earthquake elk fire fish flags flowers food fox frost garden "
    "glacier grass harbor horses house lake leaf map military moon mountain nighttime ocean "
    "person plane plants police protest railroad rainbow reflection road rocks running sand sign "
    "sky snow soccer sports statue street sun sunset surf swimmers tattoo temple tiger tower town "
    "toy train tree valley vehicle water waterfall wedding whales window zebra".split()
)
_HASHNET = re.compile(r"\S+( [01]){81}\s*")
_INDEXED = re.compile(r"[^,]+\.\w+,(\d+( \d+)*)?\s*")


def detects_hashnet(source: Path) -> bool:
    """Return whether a file, or a file in a folder, begins with such a line."""
    return bool(_files(source, _HASHNET))


def detects_indexed(source: Path) -> bool:
    """Return whether a file, or a file in a folder, begins with such a line."""
    return bool(_files(source, _INDEXED))


def read_hashnet(source: Path) -> Manifest:
    """Read a list, or all lists of a folder. Images are named by the last part of their paths."""
    return _read(source, _HASHNET, _hashnet_line)


def read_indexed(source: Path) -> Manifest:
    """Read a list, or all lists of a folder."""
    return _read(source, _INDEXED, _indexed_line)


def _files(source: Path, begins: re.Pattern[str]) -> list[Path]:
    if not source.is_dir():
        return [source] if begins.fullmatch(first_line(source)) else []
    found = (p for p in sorted(source.iterdir()) if has_suffix(p, ".txt", ".csv", ".lst"))
    named = [path for path in found if split_in_name(path)]
    kinds = {_kind(path) for path in named if begins.fullmatch(first_line(path))}
    # Include the others of that kind, so that a damaged list is an error, not ignored.
    return [path for path in named if _kind(path) in kinds]


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read(
    source: Path,
    begins: re.Pattern[str],
    parse: Callable[[str, str, NDArray[np.uint8]], str],
) -> Manifest:
    paths = _files(source, begins)
    if not paths:
        raise click.ClickException(f"{source} has no list in this format")
    names: list[str] = []
    splits: list[str] = []
    blocks = []
    for path in paths:
        lines = read_lines(path)
        block = np.zeros((len(lines), len(LABELS_81)), dtype=np.uint8)
        names += [
            parse(f"{path}:{number}", line, row)
            for number, (line, row) in enumerate(zip(lines, block, strict=True), 1)
        ]
        splits += [split_in_name(path) or "train"] * len(lines)
        blocks.append(block)
    return manifest_of(source, names, splits, LABELS_81, np.concatenate(blocks))


def _hashnet_line(where: str, line: str, row: NDArray[np.uint8]) -> str:
    """Fill row with a line's 0s and 1s; return the image's name."""
    name, *numbers = line.split() or [""]
    if len(numbers) != len(row) or not set(numbers) <= {"0", "1"}:
        raise click.ClickException(f"{where} must be a path and {len(row)} numbers 0 or 1")
    row[:] = np.array(numbers, dtype=np.uint8)
    return checked_name(where, PurePosixPath(name).name)


def _indexed_line(where: str, line: str, row: NDArray[np.uint8]) -> str:
    """Set row at a line's numbers; return the image's name."""
    name, comma, numbers = line.rpartition(",")
    indices = numbers.split()
    is_valid = comma and all(i.isdecimal() and len(i) < 9 and int(i) < len(row) for i in indices)
    if not is_valid:
        raise click.ClickException(
            f"{where} must be a name, a comma and numbers from 0 to {len(row) - 1}"
        )
    row[[int(index) for index in indices]] = 1
    return checked_name(where, name)
