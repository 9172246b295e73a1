import json
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nuswide.config import Config
from nuswide.data import decode_dataset, epoch_order, load_splits
from nuswide.manifest import Manifest

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


def order_of(n: int = 20, batch_size: int = 4, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    batches = epoch_order(np.arange(n) * 10, batch_size=batch_size, seed=seed, epoch=epoch)
    return [batch.tolist() for batch in batches]


# decode_dataset


def test_images_are_decoded_in_the_manifests_order(tmp_path: Path) -> None:
    dataset = decode_dataset(draw_pictures(tmp_path, 30), size_px=SIZE)
    assert dataset.images.shape == (30, 3, SIZE, SIZE) and dataset.images.dtype == np.uint8
    assert dataset.images[:, 0, 0, 0].tolist() == [5 * i for i in range(30)]
    assert (dataset.images == dataset.images[:, :1, :1, :1]).all()


def test_a_split_keeps_pictures_and_targets_together(tmp_path: Path) -> None:
    test = decode_dataset(draw_pictures(tmp_path, 9), size_px=SIZE).of("test")
    assert test.manifest.names == ("p02.png", "p05.png", "p08.png")
    assert test.images[:, 0, 0, 0].tolist() == [10, 25, 40]
    assert test.manifest.targets.tolist() == [[1, 0], [0, 0], [1, 0]]


def test_broken_pictures_are_counted_and_named(tmp_path: Path) -> None:
    manifest = draw_pictures(tmp_path, 6)
    (tmp_path / "p01.png").write_text("no picture")
    (tmp_path / "p04.png").write_bytes(b"")
    with pytest.raises(click.ClickException) as caught:
        decode_dataset(manifest, size_px=SIZE)
    message = caught.value.message
    assert message.startswith("2 of 6 pictures are broken")
    assert "p01.png: not a readable picture" in message and "p04.png" in message
    assert "\n" not in message and not message.endswith("...")


def test_many_broken_pictures_are_cut_short(tmp_path: Path) -> None:
    manifest = draw_pictures(tmp_path, 6)
    for name in manifest.names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(click.ClickException, match=r"^6 of 6 .*p00.*p01.*p02.* \.\.\.$") as caught:
        decode_dataset(manifest, size_px=SIZE)
    assert "p03.png" not in caught.value.message


# epoch_order


@given(
    n=st.integers(0, 60), batch_size=st.integers(1, 12), seed=st.integers(0, 9), epoch=st.integers()
)
def test_an_epoch_is_a_permutation_less_the_short_rest(
    n: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = order_of(n, batch_size, seed, abs(epoch))
    seen = [index for batch in batches for index in batch]
    assert len(batches) == n // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(0, 10 * n, 10))


def test_an_epoch_that_divides_evenly_sees_every_image() -> None:
    assert sorted(sum(order_of(20, 4), [])) == list(range(0, 200, 10))


def test_the_same_seed_and_epoch_give_the_same_order() -> None:
    assert order_of(seed=5, epoch=2) == order_of(seed=5, epoch=2)


def test_another_seed_or_epoch_gives_another_order() -> None:
    orders = [order_of(seed=seed, epoch=epoch) for seed in range(4) for epoch in range(4)]
    assert len({str(order) for order in orders}) == 16


def test_the_images_left_out_change_from_epoch_to_epoch() -> None:
    seen = set()
    for epoch in range(20):
        seen |= set(sum(order_of(n=10, batch_size=8, epoch=epoch), []))
    assert len(seen) == 10


# load_splits


def test_val_is_carved_out_of_train_by_the_seed(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=40)
    config = Config(data=str(tmp_path), val_fraction=0.25, batch_size=2)
    manifest = load_splits(config)
    assert [len(manifest.indices(split)) for split in ("train", "val", "test")] == [30, 10, 2]
    assert load_splits(config).digest == manifest.digest


def test_no_val_fraction_gives_no_val(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=4)
    config = Config(data=str(tmp_path), val_fraction=0, select_on="last", batch_size=4)
    assert set(load_splits(config).splits) == {"train", "test"}


def test_a_train_split_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    write_annotations(tmp_path, n_train=10)
    config = Config(data=str(tmp_path), val_fraction=0.5, batch_size=6)
    with pytest.raises(click.ClickException, match=r"5 images, fewer than batch_size=6; lower it"):
        load_splits(config)


@pytest.mark.parametrize(("n_train", "labels_of"), [(3, 3), (40, 1)])
def test_a_val_split_without_a_label_is_refused(
    tmp_path: Path, n_train: int, labels_of: int
) -> None:
    write_annotations(tmp_path, n_train, labels_of=labels_of)
    config = Config(data=str(tmp_path), val_fraction=0.15, batch_size=2)
    with pytest.raises(click.ClickException, match=r"val without a label; raise it, or give"):
        load_splits(config)
