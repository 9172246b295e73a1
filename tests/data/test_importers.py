import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from nuswide.data.dataset import load_manifest
from nuswide.data.importers import read_article_json

LABELS = ["sky", "wild cat", "sea"]
TRAIN = [
    {"image_name": "a.jpg", "image_labels": ["sky", "wild cat"]},
    {"image_name": "b.jpg", "image_labels": []},
]
TEST = [{"image_name": "c d.jpg", "image_labels": ["sea"]}]


def content(samples: Any, labels: Any = LABELS) -> dict[str, Any]:
    return {"samples": samples, "labels": labels}


def write_json(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def make_folder(
    folder: Path,
    train: Any = None,
    test: Any = None,
    *,
    prefix: str = "",
    pictures: str = "images",
) -> Path:
    """A folder of three tiny pictures, or whatever `train` and `test` are instead."""
    write_json(folder / f"{prefix}train.json", content(TRAIN) if train is None else train)
    write_json(folder / f"{prefix}test.json", content(TEST) if test is None else test)
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg", "c d.jpg"):
        Image.new("RGB", (4, 4)).save(folder / pictures / name)
    return folder


def error_of(folder: Path) -> str:
    """What a user reads: one line that names the folder or a file in it."""
    with pytest.raises(click.ClickException) as caught:
        load_manifest(str(folder))
    message = caught.value.message
    assert "\n" not in message and len(message) < 800
    assert str(folder) in message
    return message


@pytest.mark.parametrize("prefix", ["", "small_"])
@pytest.mark.parametrize("pictures", ["images", "."])
def test_both_file_names_and_both_places_of_pictures_work(
    tmp_path: Path, prefix: str, pictures: str
) -> None:
    manifest = load_manifest(str(make_folder(tmp_path, prefix=prefix, pictures=pictures)))
    assert manifest.names == ("a.jpg", "b.jpg", "c d.jpg")
    assert manifest.labels == ("sky", "wild cat", "sea")
    assert manifest.targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert manifest.targets.dtype == np.uint8
    assert manifest.splits.tolist() == ["train", "train", "test"]
    assert (manifest.root / "c d.jpg").is_file()


def test_the_full_files_go_before_the_small_ones(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("small_train.json", "small_test.json"):
        write_json(tmp_path / name, "not JSON")
    assert len(read_article_json(tmp_path)) == 3


def test_the_manifest_does_not_depend_on_where_the_pictures_are(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, pictures in zip(folders, ("images", "."), strict=True):
        folder.mkdir()
        make_folder(folder, pictures=pictures)
    one, two = (read_article_json(folder) for folder in folders)
    assert one.digest == two.digest


def test_a_label_said_twice_of_a_sample_counts_once(tmp_path: Path) -> None:
    make_folder(tmp_path, test=content([TEST[0] | {"image_labels": ["sea", "sea"]}]))
    assert read_article_json(tmp_path).targets[2].tolist() == [0, 0, 1]


def test_a_name_in_a_folder_of_the_folder_works(tmp_path: Path) -> None:
    make_folder(tmp_path, test=content([TEST[0] | {"image_name": "deep/e.jpg"}]))
    (tmp_path / "images" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "deep" / "e.jpg")
    assert read_article_json(tmp_path).names[2] == "deep/e.jpg"


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    message = error_of(tmp_path / "none")
    assert "train.json" in message


@pytest.mark.parametrize("name", ["train.json", "test.json"])
def test_missing_annotations_are_named_in_both_forms(tmp_path: Path, name: str) -> None:
    (make_folder(tmp_path) / name).unlink()
    assert f"{name} or small_{name}" in error_of(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", '{"samples": [', "\x00", "[" * 100_000, b"\xff\xfe{\x00"]
)
def test_malformed_json_is_named(tmp_path: Path, text: str | bytes) -> None:
    make_folder(tmp_path)
    (tmp_path / "test.json").write_bytes(text.encode() if isinstance(text, str) else text)
    assert f"{tmp_path / 'test.json'} is not valid JSON" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", 'has no list "samples"'),
        ("null", 'has no list "samples"'),
        ("7", 'has no list "samples"'),
        ('"samples"', 'has no list "samples"'),
        ({"labels": LABELS}, 'has no list "samples"'),
        ({"samples": TEST}, 'has no list "labels"'),
        ({"samples": {"0": TEST[0]}, "labels": LABELS}, 'has no list "samples"'),
        (content(TEST, "sky"), 'has no list "labels"'),
        (content([]), '"samples" is empty'),
        (content(TEST, []), '"labels" is empty'),
        (content(TEST, ["sky", 7]), 'every one of "labels" must be a text'),
        (content(TEST, ["sky", None]), 'every one of "labels" must be a text'),
        (content(TEST, ["sky", ""]), 'every one of "labels" must be a text'),
        (content(TEST, [["sky"]]), 'every one of "labels" must be a text'),
        (content(TEST, [{"name": "sky"}]), 'every one of "labels" must be a text'),
        (content(TEST, ["sky", "sea", "sky"]), "'sky' twice"),
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["train", "test"])
def test_a_wrong_outer_form_is_named(tmp_path: Path, file: str, value: Any, said: str) -> None:
    make_folder(tmp_path, **{file: value})
    message = error_of(tmp_path)
    assert message.startswith(str(tmp_path / f"{file}.json")) and said in message


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (None, 'no text "image_name"'),
        ("c d.jpg", 'no text "image_name"'),
        (["c d.jpg", ["sea"]], 'no text "image_name"'),
        ({}, 'no text "image_name"'),
        ({"image_name": 7, "image_labels": []}, 'no text "image_name"'),
        ({"image_name": ["c d.jpg"], "image_labels": []}, 'no text "image_name"'),
        ({"image_name": "c d.jpg"}, 'no list of texts "image_labels"'),
        ({"image_name": "c d.jpg", "image_labels": "sea"}, 'no list of texts "image_labels"'),
        ({"image_name": "c d.jpg", "image_labels": None}, 'no list of texts "image_labels"'),
        ({"image_name": "c d.jpg", "image_labels": [0, 1]}, 'no list of texts "image_labels"'),
        ({"image_name": "c d.jpg", "image_labels": [["sea"]]}, 'no list of texts "image_labels"'),
        ({"image_name": "c d.jpg", "image_labels": {"sea": 1}}, 'no list of texts "image_labels"'),
    ],
    ids=str,
)
def test_a_wrong_sample_is_named_by_its_place(tmp_path: Path, sample: Any, said: str) -> None:
    make_folder(tmp_path, test=content([TEST[0], sample]))
    message = error_of(tmp_path)
    assert f"{tmp_path / 'test.json'}: sample 1" in message and said in message


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "..", "../a.jpg", "images/../../a.jpg", "", "a\0.jpg", "deep/.."],
    ids=repr,
)
def test_an_image_name_that_escapes_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, train=content([{"image_name": name, "image_labels": ["sea"]}]))
    message = error_of(tmp_path)
    assert f"{tmp_path / 'train.json'}: sample 0" in message
    assert repr(name) in message and "must stay inside the folder" in message


UNWRITABLE = ["a\nb", "a\rb", "\ta", "a\x1b[2Jb", "a\x7f", "\ud800"]


@pytest.mark.parametrize("name", UNWRITABLE, ids=ascii)
def test_an_image_name_that_is_no_plain_line_is_refused(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, test=content([{"image_name": name, "image_labels": ["sea"]}]))
    message = error_of(tmp_path)
    assert f"{tmp_path / 'test.json'}: sample 0" in message
    assert repr(name) in message and "rename the image" in message


@pytest.mark.parametrize("label", UNWRITABLE, ids=ascii)
def test_a_label_that_is_no_plain_line_is_refused(tmp_path: Path, label: str) -> None:
    make_folder(tmp_path, train=content(TRAIN, ["sky", label]))
    message = error_of(tmp_path)
    assert str(tmp_path / "train.json") in message and repr(label) in message
    message.encode()  # so that a terminal can show it


def test_labels_and_names_of_any_script_work(tmp_path: Path) -> None:
    labels = ["Käse", "می\u200cخواهم", "海 辺", "👩\u200d🚒", "no\u00a0break"]
    sample = {"image_name": "海.jpg", "image_labels": labels}
    other = sample | {"image_name": "空.jpg"}
    make_folder(tmp_path, train=content([sample], labels), test=content([other], labels))
    manifest = read_article_json(tmp_path)
    manifest.save(tmp_path)
    assert manifest.load(tmp_path).labels == tuple(labels)
    assert manifest.targets.all()


def test_an_unknown_label_names_the_sample_and_the_nearest_label(tmp_path: Path) -> None:
    make_folder(tmp_path, test=content([TEST[0] | {"image_labels": ["wildcat"]}]))
    message = error_of(tmp_path)
    assert "c d.jpg" in message and "'wildcat'" in message
    assert "did you mean wild cat?" in message and 'add it to "labels"' in message


def test_an_unknown_label_among_a_thousand_is_still_a_short_message(tmp_path: Path) -> None:
    labels = [f"label {i}" for i in range(1000)]
    unknown = content([TEST[0] | {"image_labels": ["zzz"]}], labels)
    make_folder(tmp_path, train=content([TRAIN[1]], labels), test=unknown)
    message = error_of(tmp_path)
    assert "'zzz'" in message and "(1000 in all)" in message


def test_labels_of_test_that_differ_from_trains_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, test=content(TEST, LABELS[::-1]))
    message = error_of(tmp_path)
    assert str(tmp_path / "test.json") in message and "differ" in message


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("b.jpg", "c d.jpg"):
        (tmp_path / "images" / name).unlink()
    message = error_of(tmp_path)
    assert "2 of 3 images are missing: 'b.jpg', 'c d.jpg'; put them into" in message
    assert str(tmp_path / "images") in message


def test_no_pictures_at_all_are_counted(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert "3 of 3 images are missing: 'a.jpg', 'b.jpg', 'c d.jpg'; put them into" in error_of(
        tmp_path
    )


def test_a_missing_first_picture_counts_as_one(tmp_path: Path) -> None:
    (make_folder(tmp_path) / "images" / "a.jpg").unlink()
    assert "1 of 3 images is missing: 'a.jpg'; put" in error_of(tmp_path)


def test_a_folder_in_a_pictures_place_is_a_missing_picture(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "images" / "b.jpg").unlink()
    (tmp_path / "images" / "b.jpg").mkdir()
    assert "1 of 3 images is missing" in error_of(tmp_path)


def test_a_data_set_without_any_label_is_refused(tmp_path: Path) -> None:
    bare = [sample | {"image_labels": []} for sample in TRAIN]
    make_folder(tmp_path, train=content(bare), test=content([TEST[0] | {"image_labels": []}]))
    assert "no sample has any label" in error_of(tmp_path)


def test_a_file_name_too_long_for_the_disk_is_a_missing_picture(tmp_path: Path) -> None:
    long_name = {"image_name": "x" * 5000, "image_labels": ["sea"]}
    make_folder(tmp_path, test=content([long_name]))
    with pytest.raises(click.ClickException, match="1 of 3 images is missing"):
        load_manifest(str(tmp_path))
