import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing

SIZE = 32


def draw_pictures(folder: Path, n: int) -> Manifest:
    """Pictures whose grey level is 5 times their place; every third is test."""
    names = [f"p{i:02d}.png" for i in range(n)]
    for i, name in enumerate(names):
        Image.new("RGB", (9, 7), (5 * i,) * 3).save(folder / name)
    return Manifest(
        root=folder,
        names=tuple(names),
        labels=("even", "a third"),
        targets=np.array([[i % 2 == 0, i % 3 == 0] for i in range(n)], dtype=np.uint8),
        splits=np.array(["test" if i % 3 == 2 else "train" for i in range(n)]),
    )


def write_annotations(folder: Path, n_train: int, n_test: int = 2, labels_of: int = 10**9) -> None:
    """A data set in the article's form; only the first `labels_of` of train have the label."""
    for split, n in (("train", n_train), ("test", n_test)):
        samples = [
            {"image_name": f"{split}{i}.png", "image_labels": ["cat"] if i < labels_of else []}
            for i in range(n)
        ]
        for sample in samples:
            Image.new("RGB", (4, 4)).save(folder / str(sample["image_name"]))
        text = json.dumps({"samples": samples, "labels": ["cat"]})
        (folder / f"{split}.json").write_text(text)


# Dataset


def open_in(folder: Path, manifest: Manifest, **options: bool) -> Dataset:
    return open_dataset(manifest, Preprocessing(SIZE), folder=folder / "cache", **options)


def greys(data: Dataset) -> list[int]:
    images = data.gather(np.arange(len(data)))
    assert images.shape == (len(data), 3, SIZE, SIZE) and images.dtype == np.uint8
    return images[:, 0, 0, 0].tolist()


def test_images_come_in_the_manifests_order(tmp_path: Path) -> None:
    data = open_in(tmp_path, draw_pictures(tmp_path, 30))
    assert greys(data) == [5 * i for i in range(30)]
    assert data.gather(np.array([7, 2]))[:, 0, 0, 0].tolist() == [35, 10]


def test_a_split_keeps_pictures_and_targets_together(tmp_path: Path) -> None:
    test = open_in(tmp_path, draw_pictures(tmp_path, 9)).of("test")
    assert test.manifest.names == ("p02.png", "p05.png", "p08.png")
    assert greys(test) == [10, 25, 40]
    assert test.manifest.targets.tolist() == [[1, 0], [0, 0], [1, 0]]


def test_skipped_pictures_are_counted_and_the_rest_stay_with_their_targets(tmp_path: Path) -> None:
    manifest = draw_pictures(tmp_path, 9)
    (tmp_path / "p02.png").write_text("no picture")
    data = open_in(tmp_path, replace(manifest, rejected=4), skip_rejected=True)
    assert data.manifest.rejected == 5 and "p02.png" not in data.manifest.names
    assert greys(data) == [5 * i for i in range(9) if i != 2]
    assert greys(data.of("test")) == [25, 40]
    assert data.of("test").manifest.targets.tolist() == [[0, 0], [1, 0]]


def test_broken_pictures_are_an_error_unless_skipped(tmp_path: Path) -> None:
    manifest = draw_pictures(tmp_path, 6)
    (tmp_path / "p01.png").write_text("no picture")
    with pytest.raises(click.ClickException, match=r"^1 of 6 images cannot be decoded: p01\.png"):
        open_in(tmp_path, manifest)


# load_manifest


def test_pictures_are_found_beside_the_annotations_or_in_images(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=2)
    assert load_manifest(str(tmp_path)).root == tmp_path
    (tmp_path / "images").mkdir()
    for picture in tmp_path.glob("*.png"):
        picture.rename(tmp_path / "images" / picture.name)
    assert load_manifest(str(tmp_path)).root == tmp_path / "images"


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=4)
    (tmp_path / "train2.png").unlink()
    with pytest.raises(click.ClickException, match=r"^1 of 6 images is missing: 'train2\.png'"):
        load_manifest(str(tmp_path))


def test_missing_pictures_can_be_left_out_like_broken_ones(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=4)
    (tmp_path / "train2.png").unlink()
    (tmp_path / "test0.png").write_text("no picture")
    data = open_in(tmp_path, load_manifest(str(tmp_path), skip_rejected=True), skip_rejected=True)
    assert data.manifest.names == ("train0.png", "train1.png", "train3.png", "test1.png")
    assert data.manifest.rejected == 2
    assert [name for name, _ in data.rejected] == ["train2.png", "test0.png"]
    assert "No such file" in data.rejected[0][1]


def test_a_folder_without_any_of_its_pictures_is_refused_even_if_some_may_be_left_out(
    tmp_path: Path,
) -> None:
    write_annotations(tmp_path, n_train=1, n_test=1)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(click.ClickException, match=r"^2 of 2 images are missing: .*put them into"):
        load_manifest(str(tmp_path), skip_rejected=True)


def test_a_prepared_folder_is_read_with_its_pictures_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "prepared").mkdir()
    manifest = draw_pictures(tmp_path / "pictures", 5)
    manifest.save(tmp_path / "prepared")
    loaded = load_manifest(str(tmp_path / "prepared"))
    assert (loaded.root, loaded.digest) == (tmp_path / "pictures", manifest.digest)


def test_a_prepared_folder_that_was_changed_is_one_line(tmp_path: Path) -> None:
    draw_pictures(tmp_path, 5).save(tmp_path)
    text = (tmp_path / "samples.csv").read_text()
    (tmp_path / "samples.csv").write_text(text.replace("test", "train"))
    with pytest.raises(click.ClickException, match=r"was changed after .*; prepare it again$"):
        load_manifest(str(tmp_path))


# hold_out


def annotated(folder: Path, n_train: int, labels_of: int = 10**9) -> Dataset:
    write_annotations(folder, n_train=n_train, labels_of=labels_of)
    return open_in(folder, load_manifest(str(folder)))


def test_val_is_carved_out_of_train_by_the_seed(tmp_path: Path) -> None:
    data = annotated(tmp_path, n_train=40)
    carved, again = (data.hold_out(val_fraction=0.25, seed=3).manifest for _ in range(2))
    assert [len(carved.indices(split)) for split in ("train", "val", "test")] == [30, 10, 2]
    assert carved.digest == again.digest


def test_another_seed_carves_another_val(tmp_path: Path) -> None:
    data = annotated(tmp_path, n_train=40)
    one, other = (data.hold_out(val_fraction=0.15, seed=s).of("val").manifest.names for s in (0, 1))
    assert set(one) != set(other)


def test_no_val_fraction_gives_no_val(tmp_path: Path) -> None:
    data = annotated(tmp_path, n_train=4)
    assert set(data.hold_out(val_fraction=0, seed=0).manifest.splits) == {"train", "test"}


def test_a_val_split_of_the_sources_own_is_kept(tmp_path: Path) -> None:
    manifest = draw_pictures(tmp_path, 20)
    splits = manifest.splits.copy()
    splits[0] = "val"
    data = open_in(tmp_path, replace(manifest, splits=splits))
    assert data.hold_out(val_fraction=0.5, seed=0).of("val").manifest.names == ("p00.png",)


@pytest.mark.parametrize(("n_train", "labels_of"), [(3, 3), (40, 1)])
def test_a_val_split_without_a_label_is_refused(
    tmp_path: Path, n_train: int, labels_of: int
) -> None:
    data = annotated(tmp_path, n_train, labels_of)
    with pytest.raises(click.ClickException, match=r"val without any label; raise it, or give"):
        data.hold_out(val_fraction=0.15, seed=0)
