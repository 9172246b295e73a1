"""What is carved out of train: stratified, by groups, the same by the same seed."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import REAL, needs_real
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import make_manifest

from nuswide.data.importers import read_article_json
from nuswide.data.manifest import Manifest
from nuswide.data.splits import (
    carve_fold,
    carve_val,
    groups_across_splits,
    hold_out,
    read_splits,
    splits_csv,
    with_splits,
)


def long_tailed(n: int, n_labels: int, seed: int) -> np.ndarray:
    """Targets whose label shares fall as 1/rank, and that come together by a few hidden topics."""
    rng = np.random.default_rng(seed)
    share = np.minimum(0.4, 0.6 / np.arange(1, n_labels + 1))
    topics = rng.standard_normal((n, 3)) @ rng.standard_normal((3, n_labels)) / 3
    latent = topics + rng.standard_normal((n, n_labels))
    cut = [np.quantile(latent[:, c], 1 - share[c]) for c in range(n_labels)]
    return (latent >= np.array(cut)).astype(np.uint8)


def assert_shares_are_kept(before: Manifest, after: Manifest, fraction: float) -> None:
    """Every label with 20 positives in train has its share in val, to one image or 5 %."""
    positives = before.of("train").targets.sum(axis=0)
    wanted = fraction * positives
    off = np.abs(after.of("val").targets.sum(axis=0) - wanted)
    tolerance = np.maximum(1, 0.05 * wanted)
    wrong = [
        f"{label}: {off[c]:.2f} off {wanted[c]:.2f}"
        for c, label in enumerate(before.labels)
        if positives[c] >= 20 and off[c] > tolerance[c] + 1e-9
    ]
    assert not wrong


def test_same_seed_carves_the_same_val_and_another_seed_another() -> None:
    manifest = make_manifest(long_tailed(300, 12, seed=0))
    first, again, other = (carve_val(manifest, fraction=0.2, seed=s) for s in (3, 3, 4))
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_carving_leaves_test_and_everything_but_the_splits_alone() -> None:
    manifest = make_manifest(long_tailed(200, 8, seed=1), n_test=50)
    carved = carve_val(manifest, fraction=0.15, seed=0)
    assert carved.indices("test").tolist() == manifest.indices("test").tolist()
    assert replace(carved, splits=manifest.splits).digest == manifest.digest
    assert set(manifest.splits) == {"train", "test"}  # the one given is not changed in place


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.15, 0.5])
def test_val_has_the_rounded_share_of_train(n: int, fraction: float) -> None:
    targets = np.random.default_rng(n).integers(0, 2, (n, 3))
    carved = carve_val(make_manifest(targets), fraction=fraction, seed=0)
    assert len(carved.of("val")) == round(n * fraction)
    assert len(carved.of("train")) == n - round(n * fraction)


@pytest.mark.parametrize("value", [0, 1])
def test_samples_that_are_all_alike_can_be_carved(value: int) -> None:
    carved = carve_val(make_manifest(np.full((40, 4), value)), fraction=0.25, seed=0)
    assert len(carved.of("val")) == 10


def test_labels_that_always_come_together_are_carved_together() -> None:
    one = np.random.default_rng(0).random((400, 1)) < 0.1
    manifest = make_manifest(np.hstack([one, one, ~one]))
    carved = carve_val(manifest, fraction=0.15, seed=0)
    assert_shares_are_kept(manifest, carved, 0.15)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(200, 1500),
    n_labels=st.integers(1, 50),
    fraction=st.floats(0.1, 0.5),
    seed=st.integers(0, 1000),
)
def test_every_label_keeps_its_share_in_val(
    n: int, n_labels: int, fraction: float, seed: int
) -> None:
    manifest = make_manifest(long_tailed(n, n_labels, seed))
    carved = carve_val(manifest, fraction=fraction, seed=seed)
    assert len(carved.of("val")) == round(n * fraction)
    assert_shares_are_kept(manifest, carved, fraction)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_partition_train_and_val_and_every_label_keeps_its_share(folds: int) -> None:
    manifest = make_manifest(long_tailed(303, 8, seed=2), n_test=50)
    splits = manifest.splits.copy()
    splits[:40] = "val"  # the data's own, which the folds divide like train
    manifest = replace(manifest, splits=splits)
    made = [carve_fold(manifest, folds=folds, fold=fold, seed=3) for fold in range(folds)]
    parts = [m.indices("val").tolist() for m in made]
    assert sorted(sum(parts, [])) == list(range(253))
    assert {len(part) for part in parts} <= {253 // folds, -(-253 // folds)}
    wanted = manifest.targets[:253].sum(axis=0) / folds
    for fold, own in enumerate(made):
        assert own.indices("test").tolist() == manifest.indices("test").tolist()
        assert sorted([*own.indices("train"), *parts[fold]]) == list(range(253))
        off = np.abs(own.of("val").positives - wanted)
        assert (off <= np.maximum(2, 0.1 * wanted)).all(), off
    other = carve_fold(manifest, folds=folds, fold=0, seed=4)
    assert other.digest != made[0].digest


def test_images_of_a_group_stay_in_one_fold_and_too_few_groups_are_refused() -> None:
    groups = np.array([f"scene {i % 12}" for i in range(120)])
    manifest = replace(make_manifest(long_tailed(120, 5, seed=4)), groups=groups)
    made = [carve_fold(manifest, folds=3, fold=fold, seed=0).of("val") for fold in range(3)]
    scenes = [set(own.groups.tolist()) for own in made]
    assert all(scenes) and len(set.union(*scenes)) == sum(map(len, scenes)) == 12
    with pytest.raises(click.ClickException, match="12 groups of images are too few for folds=13"):
        carve_fold(manifest, folds=13, fold=0, seed=0)
    with pytest.raises(click.ClickException, match="3 images are too few for folds=4"):
        carve_fold(make_manifest(np.ones((3, 1))), folds=4, fold=0, seed=0)


def test_all_folds_have_the_same_test_images() -> None:
    manifest = make_manifest(long_tailed(200, 5, seed=5))
    made = [
        hold_out(manifest, test_fraction=0.2, val_fraction=0.15, seed=1, folds=4, fold=fold)
        for fold in range(4)
    ]
    assert {tuple(own.of("test").names) for own in made} == {tuple(made[0].of("test").names)}
    assert [len(own.indices("val")) for own in made] == [40] * 4 and len(made[0].of("test")) == 40


@needs_real("corel5k")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.3])
def test_every_label_of_corel5k_keeps_its_share_in_val(fraction: float, seed: int) -> None:
    manifest = read_article_json(REAL / "corel5k")
    assert_shares_are_kept(manifest, carve_val(manifest, fraction=fraction, seed=seed), fraction)


def test_a_small_set_is_split_as_by_version_0_2_0() -> None:
    carved = carve_val(make_manifest(long_tailed(300, 12, seed=0)), fraction=0.2, seed=3)
    assert carved.digest == "009a17b55d2ee631"


def many_rare_labels(n: int, n_labels: int) -> Manifest:
    """Eight labels an image, drawn with shares that fall as 1/rank."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, n_labels + 1)
    targets = np.zeros((n, n_labels), np.uint8)
    for row in targets:
        row[rng.choice(n_labels, 8, p=share / share.sum())] = 1
    return make_manifest(targets)


@pytest.mark.parametrize("fraction", [0.15, 0.5])
def test_every_label_of_thousands_keeps_its_share_in_val(fraction: float) -> None:
    manifest = many_rare_labels(1500, 1200)
    carved = carve_val(manifest, fraction=fraction, seed=0)
    assert len(carved.of("val")) == round(1500 * fraction)
    assert carved.digest == carve_val(manifest, fraction=fraction, seed=0).digest
    wanted = fraction * manifest.positives
    deviation = np.abs(carved.of("val").positives - wanted)
    assert (deviation <= np.maximum(1, 0.05 * wanted) + 1e-9).all()


@pytest.mark.parametrize("n_groups", [2, 3, 40, 150])
def test_images_of_a_group_stay_together(n_groups: int) -> None:
    rng = np.random.default_rng(n_groups)
    # Sizes differ: the last group is the rarest.
    groups = np.sort(rng.integers(0, n_groups, 600) * rng.integers(0, 2, 600)).astype(str)
    manifest = replace(make_manifest(long_tailed(600, 5, seed=0)), groups=groups)
    held = hold_out(manifest, test_fraction=0.2, val_fraction=0.2, seed=0)
    train, val, test = (set(held.of(s).groups.tolist()) for s in ("train", "val", "test"))
    assert not (train & val or train & test or val & test)
    assert test and train
    assert groups_across_splits(held) == []


def test_groups_of_one_size_are_split_by_label_and_number() -> None:
    groups = (np.arange(1000) // 4).astype(str)
    manifest = replace(make_manifest(long_tailed(1000, 5, seed=0)), groups=groups)
    carved = carve_val(manifest, fraction=0.2, seed=0)
    assert 190 <= len(carved.of("val")) <= 210
    assert_shares_are_kept(manifest, carved, 0.2)


def test_one_group_alone_cannot_be_split() -> None:
    manifest = replace(make_manifest(np.eye(10)), groups=np.array(["a"] * 10))
    assert set(carve_val(manifest, fraction=0.2, seed=0).splits) == {"train"}


def test_test_is_held_out_before_val_and_stated_in_the_protocol() -> None:
    manifest = make_manifest(long_tailed(500, 8, seed=0))
    held = hold_out(manifest, test_fraction=0.2, val_fraction=0.25, seed=7)
    assert [len(held.of(s)) for s in ("train", "val", "test")] == [300, 100, 100]
    assert held.protocol == "source, test_fraction=0.2 by seed 7"
    assert_shares_are_kept(
        manifest, replace(held, splits=np.where(held.splits == "test", "val", "train")), 0.2
    )
    own = make_manifest(long_tailed(500, 8, seed=0), n_test=50)
    kept = hold_out(own, test_fraction=0.2, val_fraction=0, seed=7)
    assert kept.digest == own.digest and kept.protocol == "source"


def test_recorded_splits_are_found_again_in_the_same_data_only(tmp_path: Path) -> None:
    manifest = make_manifest(long_tailed(100, 4, seed=0))
    held = hold_out(manifest, test_fraction=0.2, val_fraction=0.2, seed=0)
    (tmp_path / "splits.csv").write_text(splits_csv(held))
    recorded = read_splits(tmp_path / "splits.csv", manifest.names)
    assert recorded.tolist() == held.splits.tolist()
    by_name = dict(zip(held.names, recorded.tolist(), strict=True))
    found = with_splits(manifest.take(np.arange(99, 9, -1)), by_name)
    assert found is not None
    assert found.splits.tolist() == held.splits[:9:-1].tolist()
    # An image more, a test split of its own: other data
    assert with_splits(replace(manifest, names=("new.jpg", *manifest.names[1:])), by_name) is None
    assert with_splits(replace(manifest, splits=np.array(["test"] * 100)), by_name) is None
    own_test = np.where(held.splits == "train", "train", "test")
    assert with_splits(replace(manifest, splits=own_test), by_name) is None
