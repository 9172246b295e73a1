"""The smaller forms of annotations, each by files written here, and what damage does to them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import REAL, needs_real

from nuswide.data.importers import IMPORTERS, read_annotations
from nuswide.data.importers.lists import LABELS_81
from nuswide.data.manifest import Manifest

VOC = """<annotation><filename>{name}</filename>{objects}</annotation>"""
OBJECT = "<object><name>{}</name><difficult>{}</difficult></object>"


def write_hashnet(folder: Path) -> None:
    rows = {"train": ("./a/1_x.jpg", [0, 80]), "test": ("b/2_x.jpg", [])}
    for split, (name, present) in rows.items():
        numbers = " ".join("1" if i in present else "0" for i in range(81))
        (folder / f"list_{split}.txt").write_text(f"{name} {numbers}\n")


def write_indexed(folder: Path) -> None:
    (folder / "indexed_train.csv").write_text("1_x.jpg,0 80")
    (folder / "indexed_test.csv").write_text("2_x.jpg,3\n3_x.jpg,\n")


def write_table(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "image,labels,split,unknown\n"
        "a.jpg,wild cat; sky,train,sea\n"
        '"b, c.jpg",sea,test,\n'
        "d.jpg,,val,\n"
    )


def coco(names: list[str], *pairs: tuple[int, int]) -> str:
    return json.dumps({
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 5)],
        "annotations": [{"image_id": i, "category_id": c, "bbox": [0, 0, 1, 1]} for i, c in pairs],
        "categories": [{"id": 1, "name": "traffic light"}, {"id": 7, "name": "dog"}],
    })  # fmt: skip


def write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    train = coco(["a.jpg", "b.jpg"], (5, 7), (5, 1), (5, 7))
    (folder / "annotations/instances_train2017.json").write_text(train)
    (folder / "annotations/instances_val2017.json").write_text(coco(["c.jpg"], (5, 1)))


def write_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    objects = {
        "one": [("dog", 0), ("cat", 1)],
        "two": [("cat", 0), ("cat", 1)],
        "three": [("dog", 1)],
    }
    for name, marks in objects.items():
        text = VOC.format(name=f"{name}.jpg", objects="".join(OBJECT.format(*m) for m in marks))
        (folder / f"Annotations/{name}.xml").write_text(text)
    (folder / "ImageSets/Main/train.txt").write_text("one\ntwo  1\n")
    (folder / "ImageSets/Main/test.txt").write_text("three\n")


WRITERS = {
    "hashnet": write_hashnet, "indexed": write_indexed, "csv": write_table, "coco": write_coco,
    "voc": write_voc,
}  # fmt: skip


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    WRITERS[request.param](tmp_path)
    return request.param, tmp_path


def read(tmp_path: Path, write: Callable[[Path], None]) -> Manifest:
    write(tmp_path)
    return read_annotations(tmp_path)


def present(manifest: Manifest) -> dict[str, set[str]]:
    return {
        name: {manifest.labels[i] for i in np.flatnonzero(row)}
        for name, row in zip(manifest.names, manifest.targets, strict=True)
    }


def error_of(folder: Path, format: str = "auto") -> str:
    with pytest.raises(click.ClickException) as caught:
        read_annotations(folder, format)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_hashnets_lists_give_names_labels_and_splits(tmp_path: Path) -> None:
    manifest = read(tmp_path, write_hashnet)
    assert manifest.labels == LABELS_81
    assert present(manifest) == {"2_x.jpg": set(), "1_x.jpg": {"airport", "zebra"}}
    assert dict(zip(manifest.names, manifest.splits, strict=True)) == {
        "1_x.jpg": "train", "2_x.jpg": "test",
    }  # fmt: skip


def test_indexed_lists_count_from_0(tmp_path: Path) -> None:
    manifest = read(tmp_path, write_indexed)
    expected = {"1_x.jpg": {"airport", "zebra"}, "2_x.jpg": {"bear"}, "3_x.jpg": set()}
    assert present(manifest) == expected


def test_a_lone_list_without_a_splits_name_is_train(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("1_x.jpg,0\n")
    assert read_annotations(tmp_path / "list.csv").splits.tolist() == ["train"]


def test_a_table_gives_labels_with_spaces_splits_and_unknown(tmp_path: Path) -> None:
    manifest = read(tmp_path, write_table)
    assert manifest.labels == ("sea", "sky", "wild cat") and manifest.known is not None
    expected = {"a.jpg": {"wild cat", "sky"}, "b, c.jpg": {"sea"}, "d.jpg": set()}
    assert present(manifest) == expected
    assert manifest.splits.tolist() == ["train", "test", "val"]
    assert (~manifest.known).tolist() == [[True, False, False], [False] * 3, [False] * 3]


def test_a_class_of_coco_counts_once_an_image_and_val_is_test(tmp_path: Path) -> None:
    manifest = read(tmp_path, write_coco)
    assert present(manifest) == {
        "train2017/a.jpg": {"dog", "traffic light"}, "train2017/b.jpg": set(),
        "c.jpg": {"traffic light"},
    }  # fmt: skip
    assert manifest.splits.tolist() == ["train", "train", "test"]


def test_a_class_of_voc_that_is_only_difficult_is_unknown(tmp_path: Path) -> None:
    manifest = read(tmp_path, write_voc)
    assert manifest.labels == ("cat", "dog") and manifest.known is not None
    assert present(manifest) == {
        "JPEGImages/one.jpg": {"dog"}, "JPEGImages/two.jpg": {"cat"}, "JPEGImages/three.jpg": set(),
    }  # fmt: skip
    assert manifest.known.tolist() == [[False, True], [True, True], [True, False]]
    assert manifest.splits.tolist() == ["train", "train", "test"]


def test_a_form_is_found_by_its_files_and_may_be_named(form: tuple[str, Path]) -> None:
    name, folder = form
    assert [n for n, importer in IMPORTERS.items() if importer.detects(folder)][0] == name
    assert read_annotations(folder).digest == read_annotations(folder, name).digest


def test_gzipped_files_read_the_same(form: tuple[str, Path]) -> None:
    whole = read_annotations(form[1])
    for path in [p for p in form[1].rglob("*.*") if p.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_annotations(form[1]).digest == whole.digest


@pytest.mark.parametrize(
    ("write", "file", "old", "new", "words"),
    [
        (write_hashnet, "list_train.txt", " 1 ", " 2 ", "no list in this format"),
        (write_indexed, "indexed_test.csv", ",3", ",81", "indexed_test.csv:1 must be a name"),
        (write_indexed, "indexed_test.csv", "3_x.jpg,", "3_x.jpg", "indexed_test.csv:2 must be"),
        (write_indexed, "indexed_test.csv", "3_x.jpg", "../3_x.jpg", "must stay inside"),
        (write_table, "labels.csv", ",train,", ",learn,", "labels.csv:2: split is 'learn'"),
        (write_table, "labels.csv", "d.jpg,,val,", "d.jpg,", "labels.csv:4 has 2 cells"),
        (write_table, "labels.csv", "a.jpg", "/a.jpg", "must stay inside"),
        (write_table, "labels.csv", '"b, c.jpg"', '"b, c.jpg', "not valid CSV"),
        (write_voc, "Annotations/one.xml", "</annotation>", "", "one.xml is not a valid VOC"),
        (write_voc, "Annotations/one.xml", "one.jpg", "../one.jpg", "must stay inside"),
        (write_voc, "Annotations/one.xml", "<annotation>",
         '<!DOCTYPE a [<!ENTITY e "ha">]><annotation>', "document type, which is refused"),
        (write_voc, "ImageSets/Main/test.txt", "three", "one", "1 image occurs more than once, 0"),
        (write_voc, "ImageSets/Main/test.txt", "three", "four", "has no four.xml"),
        (write_voc, "ImageSets/Main/test.txt", "three", "../a", "must stay inside"),
        (write_coco, "annotations/instances_val2017.json", '"dog"', '"god"', "categories differ"),
        (write_coco, "annotations/instances_val2017.json", '"image_id": 5', '"image_id": 9',
         "annotations[0] is of an image or category"),
        (write_coco, "annotations/instances_val2017.json", '"c.jpg"', "3", "images[0] needs id"),
        (write_coco, "annotations/instances_val2017.json", "[", "{", "not valid JSON"),
    ],
)  # fmt: skip
def test_damage_is_named(
    tmp_path: Path, write: Callable[[Path], None], file: str, old: str, new: str, words: str
) -> None:
    write(tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    format = next(name for name, writer in WRITERS.items() if writer is write)
    if words == "no list in this format":
        (tmp_path / "list_test.txt").unlink()
    assert words in error_of(tmp_path, format)


def test_any_damage_is_read_or_refused_in_one_line(form: tuple[str, Path]) -> None:
    name, folder = form
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    rng = np.random.default_rng(0)
    for trial in range(120):
        path = files[trial % len(files)]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(len(damaged) + 1)] if trial % 2 else damaged))
        try:
            read_annotations(folder, name)
        except click.ClickException as error:
            assert "\n" not in error.message  # noqa: PT017
        path.write_bytes(sound)


def test_a_damaged_list_is_not_left_out(tmp_path: Path) -> None:
    write_hashnet(tmp_path)
    (tmp_path / "list_train.txt").write_text("damaged\n")
    assert "list_train.txt:1 must be a path" in error_of(tmp_path)


def test_a_list_may_begin_with_an_image_without_a_label(tmp_path: Path) -> None:
    write_indexed(tmp_path)
    (tmp_path / "indexed_train.csv").write_text("0_x.jpg,\n1_x.jpg,4\n")
    assert len(read_annotations(tmp_path)) == 4


@pytest.mark.parametrize("sets", [("trainval", "test"), ("trainval", "train", "val", "test")])
def test_what_trainval_has_alone_is_train(tmp_path: Path, sets: tuple[str, ...]) -> None:
    write_voc(tmp_path)
    lists = {"trainval": "one\ntwo\n", "train": "one\n", "val": "two\n", "test": "three\n"}
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    for name in sets:
        (tmp_path / f"ImageSets/Main/{name}.txt").write_text(lists[name])
    splits = read_annotations(tmp_path).splits.tolist()
    assert sorted(splits) == sorted(["train", "val" if "val" in sets else "train", "test"])


def test_images_that_occur_more_than_once_are_refused_and_named(tmp_path: Path) -> None:
    rows = ("a.jpg,x,train", "a.jpg,x,test", "b.jpg,x,train", "c.jpg,x,val", "c.jpg,,val")
    (tmp_path / "labels.csv").write_text("\n".join(("image,labels,split", *rows)))
    assert (
        "2 images occur more than once, 1 of them with other labels and 1 in several splits: "
        "'a.jpg' (in train and test), 'c.jpg' (labels differ); "
    ) in error_of(tmp_path)


@pytest.mark.parametrize("write", [write_hashnet, write_indexed, write_coco, write_voc])
def test_an_image_in_two_lists_is_refused_in_any_form(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    for old, new in {
        "list_test.txt": ("b/2_x", "c/1_x"),
        "indexed_test.csv": ("2_x", "1_x"),
        "annotations/instances_val2017.json": ("c.jpg", "train2017/a.jpg"),
        "ImageSets/Main/test.txt": ("three", "three\none"),
    }.items():
        if (path := tmp_path / old).exists():
            path.write_text(path.read_text().replace(*new))
    assert "1 image occurs more than once" in error_of(tmp_path)


def test_the_split_is_a_word_of_the_name_and_no_part_of_one(tmp_path: Path) -> None:
    (tmp_path / "latest.csv").write_text("1_x.jpg,0\n")
    assert read_annotations(tmp_path / "latest.csv").splits.tolist() == ["train"]


def test_a_prepared_folder_is_read_as_what_it_is(tmp_path: Path) -> None:
    write_voc(tmp_path)
    manifest = read_annotations(tmp_path)
    (tmp_path / "prepared").mkdir()
    manifest.save(tmp_path / "prepared")
    again = read_annotations(tmp_path / "prepared")
    assert again.digest == manifest.digest and again.root == tmp_path


def test_a_name_may_hold_what_unicode_calls_a_line_separator(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,up\u2028down\n", encoding="utf-8")
    assert read_annotations(tmp_path).labels == ("up\u2028down",)


def test_a_file_that_unpacks_to_too_many_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list_train.csv.gz"
    path.write_bytes(gzip.compress(b"a.jpg,0\n" + b"\n" * 5_000_001))
    assert "has above 5,000,000 lines" in error_of(path, "indexed")


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    assert "there is no data folder" in error_of(tmp_path / ("a" * 5000))


def test_damaged_gzip_is_one_line(tmp_path: Path) -> None:
    write_table(tmp_path)
    path = tmp_path / "labels.csv"
    packed = gzip.compress(path.read_bytes() * 50)
    path.unlink()
    for content in (packed[:-20], packed[:60] + b"!!!!" + packed[64:], b"no gzip"):
        (tmp_path / "labels.csv.gz").write_bytes(content)
        error_of(tmp_path, "csv")


def test_an_unknown_format_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean coco?" in error_of(tmp_path, "cocoo")


def test_a_folder_of_no_known_form_is_told_what_is_known(tmp_path: Path) -> None:
    message = error_of(tmp_path)
    assert all(name in message for name in IMPORTERS)


@needs_real("coco128")
def test_names_with_spaces_of_a_real_set_are_kept() -> None:
    manifest = read_annotations(REAL / "coco128")
    assert "traffic light" in manifest.labels and len(manifest) == 126
