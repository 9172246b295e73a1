"""NUS-WIDE's own layout: read whole, and every mix-up of its orders refused."""

import csv
import gzip
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import REAL, needs_real

from nuswide.data.importers import read_annotations
from nuswide.data.importers.lists import LABELS_81
from nuswide.data.manifest import Manifest
from nuswide.data.protocols import apply_protocol

NUSWIDE = REAL / "nuswide"
LABELS = ("animal", "sea", "sky")


def write_official(
    folder: Path,
    names: list[str],
    targets: np.ndarray,
    is_test: np.ndarray,
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """Write the published layout: lists with backslashes, labels a line, Windows' line ends."""
    groups = {"": np.ones(len(names), bool), "_Train": ~is_test, "_Test": is_test}
    for path in ("ImageList", "Groundtruth/AllLabels", "Groundtruth/TrainTestLabels"):
        (folder / path).mkdir(parents=True)
    (folder / "Concepts81.txt").write_text("\n".join(labels) + "\n")
    for suffix, chosen in groups.items():
        listed = "".join(names[i].replace("/", "\\") + "\r\n" for i in np.flatnonzero(chosen))
        (folder / f"ImageList/{suffix.strip('_')}Imagelist.txt").write_text(listed, newline="")
        kind = "TrainTestLabels" if suffix else "AllLabels"
        for column, label in enumerate(labels):
            lines = np.full((int(chosen.sum()), 3), list(b"0\r\n"), dtype=np.uint8)
            lines[:, 0] += targets[chosen, column]
            (folder / f"Groundtruth/{kind}/Labels_{label}{suffix}.txt").write_bytes(lines.tobytes())
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Ten photos, of which lines 2, 5, 7 and 10 are test."""
    targets = np.random.default_rng(3).integers(0, 2, (10, 3)).astype(np.uint8)
    names = [f"actor/{i:04d}_{9000 + i}.jpg" for i in range(10)]
    return write_official(tmp_path / "set", names, targets, np.isin(np.arange(1, 11) % 5, (0, 2)))


def error_of(folder: Path) -> str:
    with pytest.raises(click.ClickException) as caught:
        read_annotations(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_images_labels_and_splits_are_those_written(official: Path) -> None:
    manifest = read_annotations(official)
    targets = np.random.default_rng(3).integers(0, 2, (10, 3))
    assert manifest.names[3] == "actor/0003_9003.jpg" and manifest.labels == LABELS
    assert np.array_equal(manifest.targets, targets)
    assert manifest.indices("test").tolist() == [1, 4, 6, 9] and len(manifest.of("train")) == 6


@pytest.mark.parametrize("kept", ["AllLabels", "TrainTestLabels"])
def test_either_of_the_two_kinds_of_labels_is_enough(official: Path, kept: str) -> None:
    whole = read_annotations(official)
    dropped = {"AllLabels", "TrainTestLabels"} - {kept}
    (official / "Groundtruth" / dropped.pop()).rename(official / "elsewhere")
    assert read_annotations(official).digest == whole.digest


def test_gzipped_files_in_another_case_read_the_same(official: Path) -> None:
    whole = read_annotations(official)
    for path in [p for p in official.rglob("*.txt")]:
        packed = path.with_name(path.name.swapcase() + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_annotations(official).digest == whole.digest


def swap_first_two(path: Path) -> None:
    first, second, *rest = lines_of(path)
    path.write_text("\n".join([second, first, *rest]) + "\n")


def drop_last(path: Path) -> None:
    path.write_text("\n".join(lines_of(path)[:-1]) + "\n")


def spoil_number(path: Path) -> None:
    path.write_text("\n".join(["0", "2", *lines_of(path)[2:]]) + "\n")


def join_numbers(path: Path) -> None:
    path.write_text("\n".join(["00", *lines_of(path)[2:]]) + "\n")


def flip_first(path: Path) -> None:
    first, *rest = lines_of(path)
    path.write_text("\n".join(["01"[first == "0"], *rest]) + "\n")


SKY = "Groundtruth/AllLabels/Labels_sky.txt"


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        (SKY, drop_last, ["Labels_sky.txt has 9 lines, but the image list 10"]),
        ("ImageList/Imagelist.txt", drop_last, ["1 image is in Imagelist.txt or in the train"]),
        (SKY, spoil_number, ["Labels_sky.txt:2 must be 0 or 1"]),
        (SKY, join_numbers, ["Labels_sky.txt:1 must be 0 or 1"]),
        (SKY, flip_first, ["differ in 1 entries, first in sky of actor/0000_9000.jpg"]),
        (SKY, Path.unlink, ["has no Labels_sky.txt"]),
        ("ImageList/TrainImagelist.txt", swap_first_two, ["TrainImagelist.txt:2 is in another"]),
        ("ImageList/TestImagelist.txt", drop_last, ["has 4 lines, but the image list 3"]),
        ("ImageList/TestImagelist.txt", Path.unlink, ["no ImageList/TestImagelist.txt"]),
        ("Concepts81.txt", Path.unlink, ["no Concepts81.txt"]),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(
    official: Path, file: str, spoil: object, words: list[str]
) -> None:
    spoil(official / file)  # type: ignore[operator]
    message = error_of(official)
    assert all(word in message for word in words), message


def test_a_list_in_another_order_than_the_labels_is_refused(official: Path) -> None:
    """The mix-up that loses no line: all images are there, but in the order of the URL list."""
    for part in ("", "Train", "Test"):
        path = official / f"ImageList/{part}Imagelist.txt"
        path.write_text("\n".join(sorted(lines_of(path), reverse=True)) + "\n")
    assert "AllLabels and TrainTestLabels differ" in error_of(official)


def test_train_and_test_labels_alone_are_checked_against_the_whole_list(official: Path) -> None:
    (official / "Groundtruth/AllLabels").rename(official / "elsewhere")
    swap_first_two(official / "ImageList/TrainImagelist.txt")
    assert "TrainImagelist.txt:2 is in another order" in error_of(official)


def test_a_concept_that_is_not_listed_is_refused(official: Path) -> None:
    drop_last(official / "Concepts81.txt")
    assert "has labels_sky_train.txt, which Concepts81.txt does not name" in error_of(official)


def test_the_authors_own_folder_in_front_of_a_name_is_left_out(official: Path) -> None:
    whole = read_annotations(official)
    for path in (official / "ImageList").iterdir():
        lines = (f"C:\\ImageData\\Flickr\\{line}" for line in lines_of(path) if line)
        path.write_text("\n".join(lines))
    assert read_annotations(official).names == whole.names


def test_a_folder_without_labels_is_refused(official: Path) -> None:
    (official / "Groundtruth").rename(official / "elsewhere")
    with pytest.raises(click.ClickException, match="has neither Groundtruth/AllLabels nor"):
        read_annotations(official, "nuswide")


def test_an_image_in_both_lists_is_refused(official: Path) -> None:
    train = official / "ImageList/TrainImagelist.txt"
    test = lines_of(official / "ImageList/TestImagelist.txt")
    train.write_text("\n".join([test[0], *lines_of(train)[1:]]) + "\n")
    assert "actor/0001_9001.jpg is in the train and in the test list" in error_of(official)


def test_an_image_in_neither_list_is_refused(official: Path) -> None:
    path = official / "ImageList/Imagelist.txt"
    path.write_text(path.read_text().replace("0003_9003", "0003_1234"))
    assert "2 images are in Imagelist.txt or in the train and test lists" in error_of(official)


def test_a_url_list_of_other_photos_is_refused(official: Path) -> None:
    urls = official / "NUS-WIDE-urls.txt"
    names = [name for name in lines_of(official / "ImageList/Imagelist.txt") if name]
    lines = [f"C:\\ImageData\\Flickr\\{name}   {name[11:15]}  http://a.b/c.jpg" for name in names]
    header = "Photo_file    Photo_id    url_Large"
    urls.write_text("\n".join([header, *reversed(lines)]))  # its order is another, rightly
    assert len(read_annotations(official)) == 10
    urls.write_text("\n".join([header, *lines[:-1]]))
    assert "differ in 1 photos, 9009 first" in error_of(official)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """All 269,648 lines, from the label sets by line; their names are made up."""
    numbers = np.arange(1, 269_649)
    targets = np.zeros((len(numbers), 81), dtype=np.uint8)
    column = {label: c for c, label in enumerate(LABELS_81)}
    with gzip.open(NUSWIDE / "all_labels.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        for line, _, present in list(csv.reader(file, delimiter="\t"))[1:]:
            targets[int(line) - 1, [column[label] for label in present.split()]] = 1
    names = [f"folder{n % 700}/{n:04d}_{1_000_000 + n}.jpg" for n in numbers]
    folder = tmp_path_factory.mktemp("full") / "set"
    write_official(folder, names, targets, np.isin(numbers % 5, (0, 2)), LABELS_81)
    return folder, targets


@pytest.mark.slow
@needs_real("nuswide")
def test_the_whole_of_nus_wide_is_read_back(full: tuple[Path, np.ndarray]) -> None:
    manifest = read_annotations(full[0])
    assert np.array_equal(manifest.targets, full[1])
    sizes = {
        name: [len(apply_protocol(manifest, name).indices(s)) for s in ("train", "test")]
        for name in ("official", "official-labelled")
    }
    assert sizes == {"official": [161_789, 107_859], "official-labelled": [125_449, 83_898]}


@pytest.mark.slow
@needs_real("nuswide")
def test_the_whole_in_another_order_is_refused_without_any_second_copy_of_the_labels(
    full: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    (folder / "ImageList").mkdir(parents=True)
    (folder / "Groundtruth").mkdir()
    (folder / "Groundtruth/AllLabels").symlink_to(full[0] / "Groundtruth/AllLabels")
    (folder / "Concepts81.txt").symlink_to(full[0] / "Concepts81.txt")
    for part in ("", "Train", "Test"):
        name = f"ImageList/{part}Imagelist.txt"
        (folder / name).write_text("\n".join(sorted(lines_of(full[0] / name))))
    assert "Imagelist.txt is not in the order of the label files" in error_of(folder)


@needs_real("nuswide")
@pytest.mark.parametrize(
    ("files", "column"),
    [
        (("train.json.gz", "test.json.gz"), ("json_train", "json_test")),
        (("hashnet_train.txt.gz", "hashnet_test.txt.gz"), ("hashnet_train", "hashnet_test")),
        (("indexed_val.csv.gz",), ("indexed_val",)),
    ],
)
def test_images_per_concept_are_those_published(
    files: tuple[str, ...], column: tuple[str, ...], tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).symlink_to(NUSWIDE / name)
    manifest = read_annotations(tmp_path)
    assert counts_of(manifest, column) == {c: expected_counts(c) for c in column}


def counts_of(manifest: Manifest, columns: tuple[str, ...]) -> dict[str, dict[str, int]]:
    parts = {c: manifest.of(c.rpartition("_")[2]).targets.sum(axis=0, dtype=int) for c in columns}
    return {c: dict(zip(manifest.labels, n.tolist(), strict=True)) for c, n in parts.items()}


def expected_counts(column: str) -> dict[str, int]:
    with (NUSWIDE / "counts_per_concept.csv").open(encoding="utf-8", newline="") as file:
        return {row["concept"]: int(row[column]) for row in csv.DictReader(file)}
