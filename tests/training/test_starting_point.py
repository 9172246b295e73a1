"""What a training starts from, told by digests."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from nuswide.config import Config
from nuswide.data.dataset import read_manifest
from nuswide.data.sample.scenes import LABELS
from nuswide.models.networks import create_model
from nuswide.training.starting_point import starting_point, unused_fractions


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> Config:
    """Of a training on a copy of the data, from a file of weights."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    config = Config(backbone="resnet18", image_size_px=32, data=str(data))
    weights = create_model(config, n_labels=27).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    return replace(
        config, weights=str(tmp_path / "w.safetensors"), cache=str(tmp_path / "cache"), batch_size=2
    )


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {tag for tag in one if one[tag] != other[tag]}


def test_overwritten_weights_are_another_starting_point(config: Config) -> None:
    before = starting_point(config)
    assert starting_point(config) == before
    weights = load_file(config.weights)
    weights["backbone.conv1.weight"] += 1e-3
    save_file(weights, config.weights)
    assert differing(starting_point(config), before) == {"model.initial_digest"}


def test_overwritten_word_vectors_are_another_starting_point(
    config: Config, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    config = replace(config, head="gcn", gcn_vectors=str(vectors))
    digests = []
    for shift in (0, 1):
        words = sorted({word for label in LABELS for word in label.split()})
        vectors.write_text("".join(f"{w} {i + shift} 1\n" for i, w in enumerate(words)))
        digests.append(starting_point(config))
    assert differing(*digests) == {"model.initial_digest"}


def test_swapped_images_of_equal_names_are_another_starting_point(config: Config) -> None:
    before = starting_point(config)
    one, other = (Path(config.data) / "images" / f"000{i}.jpg" for i in range(2))
    one.rename(one.with_suffix(".swap"))
    other.rename(one)
    one.with_suffix(".swap").rename(other)
    assert differing(starting_point(config), before) == {"data.images_digest"}


def test_a_copy_of_the_data_is_the_same_starting_point(config: Config, tmp_path: Path) -> None:
    copy = shutil.copytree(config.data, tmp_path / "copy")
    assert starting_point(replace(config, data=str(copy))) == starting_point(config)


def test_rejected_images_are_left_out_as_in_training(config: Config) -> None:
    before = starting_point(config)
    (Path(config.data) / "images" / "0000.jpg").unlink()
    without = starting_point(replace(config, skip_rejected=True))
    assert differing(without, before) == {"data.digest", "data.images_digest"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"test_fraction": 0.3}, ["test_fraction=0.3 is not used, as the data has 8 test images"]),
        ({"val_fraction": 0.3}, ["val_fraction=0.3 is not used, as the data has 1 val image"]),
        (
            {"val_fraction": 0.3, "folds": 2},
            ["val_fraction=0.3 is not used, as val is a fold of folds=2"],
        ),
    ],
)
def test_a_fraction_that_the_data_leaves_unused_is_named(
    given: dict[str, Any], expected: list[str], tiny_data: Path
) -> None:
    manifest = read_manifest(str(tiny_data))
    splits = manifest.splits.astype("U5")
    splits[0] = "val"
    lines = unused_fractions(Config(**given), replace(manifest, splits=splits))
    assert [line.removesuffix(" of its own") for line in lines] == expected
    without = replace(manifest, splits=np.full(len(manifest), "train"))
    assert given.get("folds") or not list(unused_fractions(Config(**given), without))


def test_opening_the_data_names_an_unused_fraction(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    starting_point(replace(config, test_fraction=0.3))
    out = capsys.readouterr().out
    assert "test_fraction=0.3 is not used, as the data has 8 test images of its own\n" in out
