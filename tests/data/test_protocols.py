from pathlib import Path

import click
import numpy as np
import pytest

from nuswide.data.manifest import Manifest
from nuswide.data.protocols import LABELS_27, PROTOCOLS, apply_protocol


def make(n_train: int, n_test: int, labels: tuple[str, ...] = LABELS_27) -> Manifest:
    """Every third image has no label; image i of the others has label i modulo C."""
    n = n_train + n_test
    targets = np.zeros((n, len(labels)), np.uint8)
    targets[np.arange(n), np.arange(n) % len(labels)] = 1
    targets[::3] = 0
    names = tuple(f"{i}.jpg" for i in range(n))
    splits = np.array(["train"] * n_train + ["test"] * n_test)
    return Manifest(Path("."), names, labels, targets, splits)


def counts(manifest: Manifest) -> tuple[int, int]:
    return len(manifest.indices("train")), len(manifest.indices("test"))


def error_of(*arguments: object, **options: object) -> str:
    with pytest.raises(click.ClickException) as caught:
        apply_protocol(*arguments, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_source_takes_everything_as_it_is() -> None:
    manifest = make(20, 10)
    taken = apply_protocol(manifest, "source")
    assert taken.digest == manifest.digest
    assert (taken.protocol, taken.unlabelled) == ("source", "keep")


def test_images_without_a_label_can_be_dropped_and_that_is_stated() -> None:
    taken = apply_protocol(make(20, 10), "source", unlabelled="drop")
    assert taken.unlabelled == "drop"
    assert len(taken) == 20 and taken.targets.any(axis=1).all()


def test_an_image_whose_labels_were_left_out_counts_as_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("birds\n\nhouse\n")
    labels = str(tmp_path / "labels.txt")
    taken = apply_protocol(make(54, 0), "source", labels=labels, unlabelled="drop")
    assert taken.labels == ("birds", "house")
    assert taken.targets.sum() == len(taken) > 0


def test_the_most_frequent_labels_are_chosen_on_train_alone() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], np.uint8)
    splits = np.array(["train", "train", "test", "test", "test"])
    manifest = Manifest(Path("."), tuple("abcde"), ("x", "y", "z"), targets, splits)
    assert apply_protocol(manifest, "source", labels="top:2").labels == ("x", "y")


@pytest.mark.parametrize("labels", ["top:0", "top:28", "top:x", "nowhere.txt"])
def test_a_label_set_that_makes_no_sense_is_refused(labels: str) -> None:
    assert labels.removeprefix("top:") in error_of(make(9, 3), "source", labels=labels)


def test_a_label_that_the_source_lacks_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("hous\n")
    assert "did you mean house?" in error_of(
        make(9, 3), "source", labels=str(tmp_path / "labels.txt")
    )


def test_article_takes_the_first_labelled_rows_of_each_split() -> None:
    manifest = make(9_000, 3_000, (*LABELS_27, "zebra"))
    taken = apply_protocol(manifest, "article")
    assert counts(taken) == (5_000, 1_000)
    assert taken.labels == LABELS_27 and taken.targets.any(axis=1).all()
    rows = [int(name.removesuffix(".jpg")) for name in taken.of("train").names]
    labelled = np.flatnonzero(manifest.take_labels(LABELS_27).targets.any(axis=1))
    assert rows == labelled[:5_000].tolist()


def test_article_shuffled_takes_others_by_seed_and_says_so() -> None:
    manifest = make(9_000, 3_000)
    one, same, other = (
        apply_protocol(manifest, "article", order="shuffled", seed=seed) for seed in (1, 1, 2)
    )
    listed = apply_protocol(manifest, "article")
    assert one.digest == same.digest and len({one.digest, other.digest, listed.digest}) == 3
    assert counts(one) == (5_000, 1_000)
    assert one.protocol == "article shuffled by seed 1"


@pytest.mark.parametrize("name", [name for name, p in PROTOCOLS.items() if p.counts])
def test_a_source_that_cannot_keep_the_promise_is_refused_with_its_counts(name: str) -> None:
    labels = LABELS_27 if PROTOCOLS[name].n_labels == 27 else tuple(map(str, range(81)))
    error = error_of(make(90, 30, labels), name)
    assert f"{PROTOCOLS[name].counts['train']:,} train" in error and "protocol=source" in error


def test_a_source_with_other_labels_is_refused() -> None:
    assert "81 labels" in error_of(make(9, 3), "official")


def test_what_a_protocol_fixes_cannot_be_changed() -> None:
    assert "leave labels=27 out" in error_of(make(9, 3), "official", labels="27")
    assert "unlabelled=drop" in error_of(make(9, 3), "official", unlabelled="drop")


def test_an_unknown_protocol_is_answered_with_the_nearest() -> None:
    assert "did you mean official?" in error_of(make(9, 3), "oficial")


def test_hashnets_lists_keep_images_without_a_label() -> None:
    taken = apply_protocol(make(10_000, 5_000, tuple(map(str, range(81)))), "hashnet")
    assert counts(taken) == (10_000, 5_000) and not taken.targets.any(axis=1).all()
