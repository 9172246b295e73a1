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
        (text.replace(f"{first},{splits[first]}\n", ""), f"no split for 1 image, '{first}' first"),
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
@pytest.mark.slow
def test_the_articles_subset_is_taken_from_the_whole(tmp_path: Path) -> None:
    for name in ("train.json.gz", "test.json.gz"):
        (tmp_path / name).symlink_to(NUSWIDE / name)
    listed = prepare(tmp_path, tmp_path / "listed", protocol="article")
    shuffled = prepare(tmp_path, tmp_path / "shuffled", protocol="article", order="shuffled")
    for prepared in (listed, shuffled):
        assert [len(prepared.indices(s)) for s in ("train", "test")] == [5000, 1000]
        assert len(prepared.labels) == 27
    assert listed.digest != shuffled.digest


REPEATED = (
    "image,labels,split,unknown\n"
    "a.jpg,sky,train,sea;dog\n"
    "b.jpg,sea,train,\n"
    "a.jpg,sea,test,dog\n"
    "b.jpg,sea,train,\n"
    "c.jpg,dog,test,\n"
)


def test_images_that_occur_more_than_once_are_refused_and_all_listed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(REPEATED)
    message = error_of(tmp_path / "t.csv", tmp_path / "out")
    assert "2 images occur more than once, 1 of them with other labels" in message
    assert "'a.jpg' (labels differ; in train and test), 'b.jpg'; " in message
    assert "--duplicates merge or first" in message
    assert (tmp_path / "out/duplicates.csv").read_text().splitlines() == [
        "image,times,splits,labels", "a.jpg,2,train test,differ", "b.jpg,2,train,same",
    ]  # fmt: skip
    assert not Manifest.is_saved_in(tmp_path / "out")
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,sky\n")
    prepare(tmp_path / "t.csv", tmp_path / "out")
    assert not (tmp_path / "out/duplicates.csv").exists()


@pytest.mark.parametrize(("duplicates", "sea"), [("first", 0), ("merge", 1)])
def test_one_sample_of_a_repeated_image_is_kept(
    tmp_path: Path, duplicates: str, sea: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(REPEATED)
    prepared = prepare(tmp_path / "t.csv", tmp_path / "out", duplicates=duplicates)
    assert prepared.names == ("a.jpg", "b.jpg", "c.jpg")
    assert prepared.splits.tolist() == ["train", "train", "test"]
    assert prepared.labels == ("dog", "sea", "sky")
    assert prepared.targets.tolist() == [[0, sea, 1], [0, 1, 0], [1, 0, 0]]
    # dog is unknown in both samples of a.jpg, sea in the first only
    assert prepared.known is not None
    assert prepared.known.tolist() == [[False, bool(sea), True], [True] * 3, [True] * 3]
    assert "2 images occur more than once" in capsys.readouterr().err


def test_missing_images_are_named_and_listed_and_the_rest_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{i}.jpg" for i in range(9)]
    (tmp_path / "t.csv").write_text("image,labels\n" + "".join(f"{n},sky\n" for n in names))
    (tmp_path / "images").mkdir()
    for name in names[:2]:
        (tmp_path / "images" / name).touch()
    prepared = prepare(tmp_path / "t.csv", tmp_path / "out")
    assert len(prepared) == 9
    said = capsys.readouterr().err
    assert "7 of 9 images are missing: '2.jpg', '3.jpg', '4.jpg', '5.jpg', '6.jpg' ...;" in said
    assert "skip_rejected=true" in said and said.count("\n") == 1
    listed = (tmp_path / "out/missing.csv").read_text().splitlines()
    assert listed == ["image", *names[2:]]


def test_a_column_of_groups_is_kept_with_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        "image,labels,split,patient\na.jpg,sky,train,p1\nb.jpg,sea,test,p1 \nc.jpg,sky,train, \n"
    )
    prepare(tmp_path / "t.csv", tmp_path / "out", group_column="patient")
    groups = Manifest.load(tmp_path / "out").groups
    assert groups is not None and groups.tolist() == ["p1", "p1", "c.jpg"]
    assert "in several splits of the source: 1, 'p1' first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"group_column": "scene"},
            "column 'patient', which is not one of image, labels, split, unk",
        ),
        ({"group_column": ""}, "group_column is empty"),
        ({"group_column": " "}, "group_column is empty"),
        ({}, "t.csv has a column 'patient', which is not one of"),
        ({"format": "csv"}, "use `nuswide prepare --group_column patient`"),
        ({"group_column": "patient", "format": "coco"}, "a column of the format csv, not of coco"),
    ],
)
def test_a_column_of_groups_that_is_not_there_or_not_named_is_refused(
    tmp_path: Path, options: dict[str, str], reason: str
) -> None:
    (tmp_path / "t.csv").write_text("image,labels,patient\na.jpg,sky,p1\n")
    assert reason in error_of(tmp_path / "t.csv", tmp_path / "out", **options)


def test_the_table_of_a_prepared_folder_is_not_read_as_a_source(tmp_path: Path) -> None:
    """It has a CSV source's columns, but indices in place of labels."""
    (tmp_path / "t.csv").write_text("image,labels,group\na.jpg,sky,g\n")
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    prepare(tmp_path / "t.csv", prepared, group_column="group")
    assert "is prepared already" in error_of(prepared, out, group_column="group")
    assert "0 CSV files" in error_of(prepared, out, format="csv")
    assert "0 CSV files" in error_of(prepared / "samples.csv", out, group_column="group")
    (tmp_path / "u.csv").write_text("image,labels\na.jpg,sky\n")
    prepare(tmp_path / "u.csv", tmp_path / "ungrouped")
    assert "annotations" in error_of(tmp_path / "ungrouped/samples.csv", out)
