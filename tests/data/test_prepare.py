from pathlib import Path

import click
import pytest
from conftest import REAL, needs_real

from nuswide.data.importers import read_article_json
from nuswide.data.manifest import Manifest
from nuswide.data.prepare import prepare

NUSWIDE = REAL / "nuswide"


def write_splits(path: Path, splits: dict[str, str]) -> Path:
    path.write_text("image,split\n" + "".join(f"{k},{v}\n" for k, v in splits.items()))
    return path


def split_of(data: Path) -> dict[str, str]:
    manifest = read_article_json(data)
    return dict(zip(manifest.names, map(str, manifest.splits), strict=True))


def error_of(*arguments: Path, **options: object) -> str:
    with pytest.raises(click.ClickException) as caught:
        prepare(*arguments, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_is_prepared_is_what_was_read(tiny_data: Path, tmp_path: Path) -> None:
    prepared = prepare(tiny_data, tmp_path / "out")
    loaded = Manifest.load(tmp_path / "out")
    assert loaded.digest == prepared.digest == read_article_json(tiny_data).digest
    assert loaded.root == tiny_data.resolve()


def test_a_prepared_folder_is_not_overwritten(tiny_data: Path, tmp_path: Path) -> None:
    prepare(tiny_data, tmp_path / "out")
    assert "another folder" in error_of(tiny_data, tmp_path / "out")


def test_labels_and_unlabelled_are_stated(tiny_data: Path, tmp_path: Path) -> None:
    prepare(tiny_data, tmp_path / "out", labels="top:2", unlabelled="drop")
    loaded = Manifest.load(tmp_path / "out")
    assert len(loaded.labels) == 2 and loaded.unlabelled == "drop"
    assert loaded.targets.any(axis=1).all()


def test_a_split_file_takes_the_place_of_the_sources_split(tiny_data: Path, tmp_path: Path) -> None:
    wanted = {name: ("train", "val", "test")[i % 3] for i, name in enumerate(split_of(tiny_data))}
    file = write_splits(tmp_path / "splits.csv", wanted)
    prepared = prepare(tiny_data, tmp_path / "out", split_file=file)
    assert dict(zip(prepared.names, map(str, prepared.splits), strict=True)) == wanted


def test_a_split_file_that_overlaps_lacks_or_misspells_is_refused(
    tiny_data: Path, tmp_path: Path
) -> None:
    splits = split_of(tiny_data)
    first = next(iter(splits))
    file = write_splits(tmp_path / "splits.csv", splits)
    text = file.read_text()
    other = "test" if splits[first] == "train" else "train"
    for change, word in (
        (text + f"{first},{other}\n", f"{first} is in {splits[first]} and in {other}"),
        (text.replace(f"{first},{splits[first]}\n", ""), f"no split for 1 images, '{first}' first"),
        (text.replace(",test", ",tset"), "one of train, val, test"),
        ("", "no split for"),
    ):
        file.write_text(change)
        assert word in error_of(tiny_data, tmp_path / "out", split_file=file)
        assert not (tmp_path / "out").exists()


@needs_real("nuswide")
def test_hashnets_lists_pass_their_protocol(tmp_path: Path) -> None:
    for name in ("hashnet_train.txt.gz", "hashnet_test.txt.gz"):
        (tmp_path / name).symlink_to(NUSWIDE / name)
    prepared = prepare(tmp_path, tmp_path / "out", protocol="hashnet")
    unlabelled = [(prepared.of(s).targets.sum(axis=1) == 0).sum() for s in ("train", "test")]
    assert unlabelled == [2185, 1131]


@needs_real("nuswide")
def test_the_articles_subset_is_taken_from_the_whole(tmp_path: Path) -> None:
    for name in ("train.json.gz", "test.json.gz"):
        (tmp_path / name).symlink_to(NUSWIDE / name)
    listed = prepare(tmp_path, tmp_path / "listed", protocol="article")
    shuffled = prepare(tmp_path, tmp_path / "shuffled", protocol="article", order="shuffled")
    for prepared in (listed, shuffled):
        assert [len(prepared.indices(s)) for s in ("train", "test")] == [5000, 1000]
        assert len(prepared.labels) == 27
    assert listed.digest != shuffled.digest
