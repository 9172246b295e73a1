from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nuswide.data.manifest import Manifest


def make_manifest(targets: np.ndarray, n_test: int = 0) -> Manifest:
    n, n_labels = targets.shape
    return Manifest(
        root=Path("photos"),
        names=tuple(f"{i}.jpg" for i in range(n)),
        labels=tuple(f"label {c}" for c in range(n_labels)),
        targets=targets.astype(np.uint8),
        splits=np.array(["train"] * (n - n_test) + ["test"] * n_test, dtype="U5"),
    )


def test_a_saved_manifest_is_the_same_when_loaded(tmp_path: Path) -> None:
    known = np.ones((4, 4), bool)
    known[0, 1:] = False
    before = replace(
        make_manifest(np.eye(4), n_test=1), known=known, protocol="mine", unlabelled="drop",
        rejected=3, groups=np.array(["x", "y", "x", "z, z"]),
        names=("a b.jpg", "ü/b.jpg", 'c",d.jpg', "d.jpg"),
    )  # fmt: skip
    assert not Manifest.is_saved_in(tmp_path)
    before.save(tmp_path)
    after = Manifest.load(tmp_path)
    assert Manifest.is_saved_in(tmp_path) and after.digest == before.digest
    for field in ("root", "names", "labels", "protocol", "unlabelled", "rejected"):
        assert getattr(after, field) == getattr(before, field)
    for field in ("targets", "splits", "known", "groups"):
        assert np.array_equal(getattr(after, field), getattr(before, field))


@pytest.mark.parametrize(
    ("old", "new"), [("0.jpg,train,0", "0.jpg,train,1"), (",test,", ",train,"), ("0.jpg", "9.jpg")]
)
def test_a_saved_manifest_that_was_changed_is_refused(tmp_path: Path, old: str, new: str) -> None:
    make_manifest(np.eye(4), n_test=1).save(tmp_path)
    text = (tmp_path / "samples.csv").read_text()
    assert old in text
    (tmp_path / "samples.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="was changed"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "lines",
    [
        ["image,split,labels,unknown,group", "0.jpg,train,0,,p1", "1.jpg,train,1,,p2"],
        ["image,split,labels,unknown", "0.jpg,train,0,", "1.jpg,train,1,"],
    ],
)
def test_a_changed_group_is_refused(tmp_path: Path, lines: list[str]) -> None:
    replace(make_manifest(np.eye(2)), groups=np.array(["p1", "p1"])).save(tmp_path)
    (tmp_path / "samples.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="was changed"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "image,split\n", "image,split,labels,unknown\na,b\n"])
@pytest.mark.parametrize("name", ["manifest.json", "samples.csv"])
def test_a_damaged_manifest_is_a_value_error(tmp_path: Path, name: str, damage: str) -> None:
    make_manifest(np.eye(4), n_test=1).save(tmp_path)
    (tmp_path / name).write_text(damage)
    with pytest.raises(ValueError, match="damaged"):
        Manifest.load(tmp_path)


def test_digest_takes_no_notice_of_order_or_folders() -> None:
    manifest = make_manifest(np.eye(4), n_test=1)
    reordered = manifest.take(np.array([2, 3, 0, 1])).take_labels(manifest.labels[::-1])
    moved = replace(reordered, names=tuple(f"flickr/{name}" for name in reordered.names))
    assert moved.digest == manifest.digest


def test_the_full_digest_is_the_digest_and_one_of_the_groups() -> None:
    manifest = make_manifest(np.eye(4))
    assert manifest.full_digest == manifest.digest
    grouped = replace(manifest, groups=np.array(["p1", "p1", "p2", "p2"]))
    regrouped = replace(manifest, groups=np.array(["p1", "p2", "p1", "p2"]))
    assert manifest.digest == grouped.digest == regrouped.digest
    digests = {m.full_digest for m in (manifest, grouped, regrouped)}
    assert len(digests) == 3
    assert grouped.take(np.array([2, 3, 0, 1])).full_digest == grouped.full_digest


def test_taking_samples_or_labels_takes_what_is_known_of_them_along() -> None:
    known = np.random.default_rng(0).random((5, 4)) < 0.5
    manifest = replace(make_manifest(np.zeros((5, 4)), n_test=2), known=known)
    taken = manifest.of("test").known
    assert taken is not None and taken.tolist() == known[3:].tolist()
    swapped = manifest.take_labels(("label 3", "label 1"))
    assert swapped.labels == ("label 3", "label 1")
    assert swapped.known is not None and swapped.known.tolist() == known[:, [3, 1]].tolist()


def test_taking_labels_takes_their_targets_along() -> None:
    swapped = make_manifest(np.eye(4)).take_labels(("label 3", "label 1"))
    assert swapped.targets.tolist() == [[0, 0], [0, 1], [0, 0], [1, 0]]


def test_digest_tells_unknown_from_absent() -> None:
    manifest = make_manifest(np.eye(4))
    known = np.ones((4, 4), bool)
    assert replace(manifest, known=known).digest == manifest.digest
    known[0, 1] = False
    assert replace(manifest, known=known).digest != manifest.digest


def test_of_gives_one_splits_samples_in_their_order() -> None:
    manifest = make_manifest(np.eye(5), n_test=2)
    test = manifest.of("test")
    assert test.names == ("3.jpg", "4.jpg")
    assert test.targets.tolist() == np.eye(5)[3:].tolist()
    assert len(test) == 2 and set(test.splits) == {"test"}
    assert len(manifest.of("val")) == 0


@pytest.mark.parametrize("field", ["labels", "names", "targets", "splits"])
def test_digest_changes_with_any_part(field: str) -> None:
    manifest = make_manifest(np.eye(4), n_test=1)
    targets = manifest.targets.copy()
    targets[0, 1] = 1
    other = {
        "labels": ("other", *manifest.labels[1:]),
        "names": ("other.jpg", *manifest.names[1:]),
        "targets": targets,
        "splits": np.array(["val", *manifest.splits[1:]]),
    }
    assert replace(manifest, **{field: other[field]}).digest != manifest.digest


def test_digest_is_of_the_content_and_not_of_the_folder() -> None:
    manifest = make_manifest(np.eye(4))
    moved = replace(manifest, root=Path("elsewhere"), targets=manifest.targets.copy())
    assert moved.digest == manifest.digest
    assert len(manifest.digest) == 16 and int(manifest.digest, 16) >= 0


def test_digest_tells_joined_labels_from_separate_ones() -> None:
    two = replace(make_manifest(np.ones((1, 2))), labels=("a", "b"))
    assert two.digest != replace(two, labels=("a b", "")).digest
