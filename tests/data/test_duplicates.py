"""Duplicates among drawn pictures: found through JPEG, resizing and company, and only where."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.data.duplicates import _candidates, find_duplicates
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing

SIZE = 64


def data_of(images: list[np.ndarray]) -> Dataset:
    n = len(images)
    targets = np.ones((n, 1), np.uint8)
    names = tuple(map(str, range(n)))
    manifest = Manifest(Path("."), names, ("a",), targets, np.array(["train"] * n))
    return Dataset(manifest, np.stack(images), np.arange(n))


@pytest.fixture(scope="module")
def scenes(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """48 drawn scenes, none like another."""
    folder = tmp_path_factory.mktemp("cache")
    data = open_dataset(load_manifest(str(tiny_data)), Preprocessing(SIZE), folder=folder)
    return list(data.gather(np.arange(len(data))))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed)).transpose(2, 0, 1)


def resized(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0))
    return np.asarray(picture.resize((150, 110)).resize((SIZE, SIZE))).transpose(2, 0, 1)


def test_scenes_of_their_own_are_no_duplicates(scenes: list[np.ndarray]) -> None:
    assert find_duplicates(data_of(scenes)) == []


def test_equal_pictures_are_exact(scenes: list[np.ndarray]) -> None:
    (pair,) = find_duplicates(data_of([*scenes, scenes[5].copy()]))
    assert (pair.first, pair.second, pair.bits, pair.is_exact) == (5, 48, 0, True)


@pytest.mark.parametrize("change", [lambda s: jpeg(s, 40), resized], ids=["JPEG", "resized"])
def test_pictures_packed_or_resized_again_are_near(
    scenes: list[np.ndarray], change: object
) -> None:
    copies = [change(scene) for scene in scenes]  # type: ignore[operator]
    found = {(p.first, p.second): p for p in find_duplicates(data_of(scenes + copies))}
    true_pairs = {(i, i + 48) for i in range(48)}
    assert len(true_pairs & set(found)) >= 46 and not set(found) - true_pairs
    assert not any(pair.is_exact for pair in found.values())


def test_one_changed_pixel_is_not_exact(scenes: list[np.ndarray]) -> None:
    changed = scenes[0].copy()
    changed[0, 0, 0] ^= 128
    (pair,) = find_duplicates(data_of([scenes[0], changed]))
    assert not pair.is_exact


def test_a_picture_there_many_times_is_paired_with_the_first_alone(
    scenes: list[np.ndarray],
) -> None:
    pairs = find_duplicates(data_of([scenes[1], scenes[0], *[scenes[0]] * 300]))
    assert [(p.first, p.second) for p in pairs] == [(1, i) for i in range(2, 302)]


def test_flat_pictures_of_different_colours_are_no_duplicates() -> None:
    flat = [np.full((3, SIZE, SIZE), grey, np.uint8) for grey in (0, 120, 255)]
    assert find_duplicates(data_of(flat)) == []


def test_a_picture_mirrored_or_turned_is_another(scenes: list[np.ndarray]) -> None:
    turned = [scene[:, ::-1] for scene in scenes[:8]]
    pairs = find_duplicates(data_of(scenes[:8] + turned))
    assert all(pair.second != pair.first + 8 for pair in pairs)


def test_a_near_hash_is_found_among_a_hundred_thousand() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[70_000] = hashes[3] ^ np.uint64(0b100100100100100000100)  # six bits, a band each
    assert _candidates(hashes) == {(3, 70_000)}
