"""The cache of feature maps, computed by a stand-in for a network."""

import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nuswide.core.files import temporary_path
from nuswide.data import feature_cache
from nuswide.data.cache_list import list_caches
from nuswide.data.dataset import Dataset, open_dataset
from nuswide.data.feature_cache import FEATURES, open_features
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing

SHAPE = (2, 1, 1)
N = 5


@pytest.fixture
def computed() -> list[int]:
    """How many images each call computed."""
    return []


@pytest.fixture
def compute(computed: list[int]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    def brightness(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        computed.append(len(images))
        mean = images.mean(axis=(1, 2, 3)).astype(np.float32)
        return np.stack([mean, -mean], axis=1)[:, :, None, None]

    return brightness


def draw(folder: Path, row: int, gray: int) -> None:
    Image.new("L", (32, 32), gray).save(folder / f"{row}.png")


def open_images(tmp_path: Path, *, skip_rejected: bool = False) -> Dataset:
    names = tuple(f"{row}.png" for row in range(N))
    manifest = Manifest(tmp_path, names, ("a",), np.ones((N, 1), np.uint8), np.array(["train"] * N))
    folder = tmp_path / "cache"
    return open_dataset(manifest, Preprocessing(32), folder=folder, skip_rejected=skip_rejected)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    for row in range(N):
        draw(tmp_path, row, 10 * row)
    return open_images(tmp_path)


def grays(data: Dataset) -> list[float]:
    return data.gather_inputs(np.arange(len(data)))[:, 0, 0, 0].tolist()


def test_maps_are_computed_once_and_taken_in_place_of_images(data, compute, computed) -> None:
    first = open_features(data, "k", SHAPE, compute)
    assert grays(first) == [0, 10, 20, 30, 40] and computed == [N]
    assert first.gather(np.array([2])).max() == 20  # the images are still there
    assert grays(first.of("train")) == [0, 10, 20, 30, 40]
    assert grays(open_features(data, "k", SHAPE, compute)) == grays(first) and computed == [N]
    open_features(data, "another network", SHAPE, compute)
    assert computed == [N, N]


def test_only_the_map_of_a_changed_image_is_computed_again(
    data, compute, computed, tmp_path: Path
) -> None:
    before = open_features(data, "k", SHAPE, compute)
    draw(tmp_path, 3, 200)
    after = open_features(open_images(tmp_path), "k", SHAPE, compute)
    assert grays(after) == [0, 10, 20, 200, 40] and computed == [N, 1]
    assert grays(before) == [0, 10, 20, 30, 40]  # whoever has the old file open keeps it


def test_a_rejected_image_needs_no_map(data, compute, computed, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"broken")
    for _ in range(2):
        rest = open_features(open_images(tmp_path, skip_rejected=True), "k", SHAPE, compute)
    assert grays(rest) == [0, 20, 30, 40] and computed == [N - 1]
    assert [info.content for info in list_caches(tmp_path / "cache")] == ["2x1x1", "32 px"]


def test_a_killed_build_continues(
    data, compute, computed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    monkeypatch.setattr(feature_cache, "_SAVE_S", 0.0)

    def killed_at_the_second(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if computed:
            raise KeyboardInterrupt
        return compute(images)

    with pytest.raises(KeyboardInterrupt):
        open_features(data, "k", SHAPE, killed_at_the_second)
    ready = {info.content: str(info) for info in list_caches(tmp_path / "cache")}
    assert "2 ready" in ready["2x1x1"] and "complete" in ready["32 px"]
    assert grays(open_features(data, "k", SHAPE, compute)) == [0, 10, 20, 30, 40]
    assert computed == [2, 2, 1]
    (found,) = (tmp_path / "cache").glob(f"*/{FEATURES}")
    assert not temporary_path(found).exists()
    assert "complete" in str(list_caches(tmp_path / "cache")[0])


def test_a_map_that_was_not_saved_does_not_count_once_its_image_is_as_before(
    data, compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    monkeypatch.setattr(feature_cache, "_SAVE_S", 0.0)

    def killed_at(stop: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        calls = iter(range(stop))

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return compute(images)

        return run

    with pytest.raises(KeyboardInterrupt):
        open_features(data, "k", SHAPE, killed_at(1))  # rows 0 and 1 are saved
    draw(tmp_path, 1, 200)
    monkeypatch.setattr(feature_cache, "_save", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):  # after row 1 has the map of its new image
        open_features(open_images(tmp_path), "k", SHAPE, killed_at(1))
    monkeypatch.undo()
    draw(tmp_path, 1, 10)
    assert grays(open_features(open_images(tmp_path), "k", SHAPE, compute)) == [0, 10, 20, 30, 40]


def test_a_disk_that_is_too_small_is_named_before_anything_is_computed(
    data, compute, computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 7})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(click.ClickException) as caught:
        open_features(data, "k", SHAPE, compute)
    assert "cache_features=false" in caught.value.message and not computed
