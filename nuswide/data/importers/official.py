"""NUS-WIDE in its published layout (Chua et al., CIVR 2009).

ImageList/ lists the paths of all, the train and the test images, with backslashes. Groundtruth/ has
a file for each of 81 concepts with 0 or 1 per line, parallel to those lists: AllLabels/ to all,
TrainTestLabels/ to train and test. NUS-WIDE-urls.txt lists the same photos in another order, so
that a list made from it matches no label file; every sign of such a mix-up is checked here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.core.wording import counted
from nuswide.data.importers.files import checked_labels, checked_name, manifest_of
from nuswide.data.manifest import Manifest
from nuswide.data.text_files import find_file, read_bytes, read_lines

_FULL = 269_648
_TEST_FIFTHS = (0, 2)  # a photo is in test if its line number modulo 5 is one of these
# The rule was derived from the published lists, so a few lines may deviate; in another order about
# half of them do.
_RULE_HOLDS = 0.95


def detects(source: Path) -> bool:
    """Return whether a folder has Groundtruth/ with one of its two folders."""
    return any(_folder(source, "Groundtruth", name) for name in ("AllLabels", "TrainTestLabels"))


def read(source: Path) -> Manifest:
    """Read lists and labels, and check that they agree."""
    concepts = _read_concepts(source)
    train, test = (
        _read_list(_required(source, "ImageList", f"{part}Imagelist.txt"))
        for part in ("Train", "Test")
    )
    overlap = set(train) & set(test)
    if overlap:
        raise click.ClickException(f"{source}: {min(overlap)} is in the train and in the test list")
    parts = _folder(source, "Groundtruth", "TrainTestLabels")
    whole = _folder(source, "Groundtruth", "AllLabels")
    by_part = None
    if parts:
        blocks = [
            _read_labels(parts, concepts, f"_{part}", len(names))
            for part, names in (("Train", train), ("Test", test))
        ]
        by_part = np.concatenate(blocks)
    listed = find_file(_folder(source, "ImageList") or source, "Imagelist.txt")
    names = _read_list(listed) if listed else train + test
    if listed:
        _check_order(source, names, train, test)
    if whole:
        _required(source, "ImageList", "Imagelist.txt")
        targets = _read_labels(whole, concepts, "", len(names))
        if by_part is not None:
            _check_agreement(source, names, targets, train + test, by_part, concepts)
    elif by_part is not None:
        names, targets = train + test, by_part
    else:
        raise click.ClickException(
            f"{source} has neither Groundtruth/AllLabels nor Groundtruth/TrainTestLabels"
        )
    _check_urls(source, names)
    is_test = set(test)
    splits = ["test" if name in is_test else "train" for name in names]
    return manifest_of(source, names, splits, concepts, targets)


def _folder(source: Path, *names: str) -> Path | None:
    """Find a folder below source, ignoring case."""
    folder: Path | None = source
    for name in names:
        folder = find_file(folder, name) if folder else None
    return folder if folder and folder.is_dir() else None


def _required(source: Path, folder: str, name: str) -> Path:
    found = find_file(_folder(source, folder) or source, name)
    if found is None:
        raise click.ClickException(f"{source} has no {folder}/{name}; put NUS-WIDE's file there")
    return found


def _read_concepts(source: Path) -> list[str]:
    folders = (source, _folder(source, "ConceptsList"))
    paths = (find_file(folder, "Concepts81.txt") for folder in folders if folder)
    path = next(filter(None, paths), None)
    if path is None:
        raise click.ClickException(f"{source} has no Concepts81.txt; put NUS-WIDE's file there")
    concepts = [line.strip() for line in read_lines(path)]
    return checked_labels(str(path), concepts)


def _read_list(path: Path) -> list[str]:
    """Read image names, with forward slashes."""
    lines = enumerate(read_lines(path), 1)
    names = [checked_name(f"{path}:{n}", _slashes(line.strip())) for n, line in lines]
    if len(set(names)) < len(names):
        surplus = counted(len(names) - len(set(names)), "duplicate line")
        raise click.ClickException(f"{path} has {surplus}")
    return names


def _slashes(name: str) -> str:
    """Return a name with forward slashes, without the folder of the authors' machine."""
    return re.sub("^[a-z]:/ImageData/Flickr/", "", name.replace("\\", "/"), flags=re.IGNORECASE)


def _read_labels(
    folder: Path, concepts: Sequence[str], suffix: str, n_images: int
) -> NDArray[np.uint8]:
    """Read the labels of a list's images; (N, C)."""
    targets = np.empty((n_images, len(concepts)), dtype=np.uint8)
    present = {path.name.removesuffix(".gz").lower(): path for path in folder.iterdir()}
    wanted = {f"labels_{concept}{suffix}.txt".lower() for concept in concepts}
    kind = [name for name in present if re.fullmatch(rf"labels_.*{suffix.lower()}\.txt", name)]
    odd = sorted(set(kind) - wanted)
    if odd:
        raise click.ClickException(f"{folder} has {odd[0]}, which Concepts81.txt does not name")
    for column, concept in enumerate(concepts):
        name = f"Labels_{concept}{suffix}.txt"
        path = present.get(name.lower())
        if path is None:
            raise click.ClickException(f"{folder} has no {name}; put NUS-WIDE's file there")
        values = _read_numbers(path)
        if len(values) != n_images:
            raise click.ClickException(
                f"{path} has {len(values):,} lines, but the image list {n_images:,}; they do not "
                "belong together"
            )
        targets[:, column] = values
    return targets


def _read_numbers(path: Path) -> NDArray[np.uint8]:
    """Read one 0 or 1 per line; (N,)."""
    text = np.frombuffer(read_bytes(path), dtype=np.uint8)
    offsets = np.flatnonzero(text > ord(" "))
    values = text[offsets] - np.uint8(ord("0"))
    wrong = np.flatnonzero((values > 1) | (np.diff(offsets, prepend=-2) == 1))
    if len(wrong):
        line = np.count_nonzero(text[: offsets[wrong[0]]] == ord("\n")) + 1
        raise click.ClickException(f"{path}:{line} must be 0 or 1")
    return values


def _check_order(
    source: Path, names: Sequence[str], train: Sequence[str], test: Sequence[str]
) -> None:
    """Check that the list of all images has those of train and test, in the order of the labels."""
    odd = set(names) ^ (set(train) | set(test))
    if odd:
        raise click.ClickException(
            f"{source}: {counted(len(odd), 'image is', 'images are')} in Imagelist.txt or in the "
            f"train and test lists, but not in both, {min(odd)} first; they do not belong together"
        )
    row_of = {name: i for i, name in enumerate(names)}
    for part, listed in (("Train", train), ("Test", test)):
        rows = np.array([row_of[name] for name in listed])
        late = np.flatnonzero(np.diff(rows) < 0)
        if len(late):
            raise click.ClickException(
                f"{source}: {part}Imagelist.txt:{late[0] + 2} is in another order than "
                "Imagelist.txt, so labels would be assigned to other images; use NUS-WIDE's lists"
            )
    if len(names) == _FULL:
        by_rule = np.isin(np.arange(1, _FULL + 1) % 5, _TEST_FIFTHS)
        is_test = np.zeros(_FULL, dtype=bool)
        is_test[[row_of[name] for name in test]] = True
        if (by_rule == is_test).mean() < _RULE_HOLDS:
            raise click.ClickException(
                f"{source}: Imagelist.txt is not in the order of the label files (the test images "
                "are not where they are in NUS-WIDE's list); use NUS-WIDE's list"
            )


def _check_agreement(
    source: Path,
    names: Sequence[str],
    targets: NDArray[np.uint8],
    part_names: Sequence[str],
    by_part: NDArray[np.uint8],
    concepts: Sequence[str],
) -> None:
    """Check that AllLabels and TrainTestLabels agree on each image."""
    row_of = {name: i for i, name in enumerate(names)}
    differs = targets[[row_of[name] for name in part_names]] != by_part
    if differs.any():
        row, column = np.argwhere(differs)[0]
        raise click.ClickException(
            f"{source}: AllLabels and TrainTestLabels differ in {differs.sum():,} entries, first "
            f"in {concepts[column]} of {part_names[row]}; lists and labels are in different orders"
        )


def _check_urls(source: Path, names: Sequence[str]) -> None:
    """Check that the list of addresses, if there is one, has the same photos."""
    name = "NUS-WIDE-urls.txt"
    path = find_file(source, name) or find_file(source / "NUS-WIDE-urls", name)
    if path is None:
        return
    firsts = (_slashes(line.strip()).split()[:1] for line in read_lines(path))
    # The file has a header.
    listed = [name for first in firsts for name in first if name.lower().endswith(".jpg")]
    ids, wanted = ({_photo_id(name) for name in group} for group in (listed, names))
    if ids != wanted:
        raise click.ClickException(
            f"{path} and the image list differ in {len(ids ^ wanted):,} photos, "
            f"{min(ids ^ wanted)} first; they do not belong together"
        )


def _photo_id(name: str) -> str:
    """Return Flickr's ID in a name: actor/0001_2124494179.jpg -> 2124494179."""
    return name.rpartition("/")[2].partition(".")[0].partition("_")[2]
