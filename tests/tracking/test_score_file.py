"""Scores on file, ours and other programs'."""

from pathlib import Path

import click
import numpy as np
import pytest

from nuswide.data.manifest import Manifest
from nuswide.tracking.score_file import SavedScores

LABELS = ("sky", "sea, calm", "größe")
TARGETS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=np.uint8)
SAMPLES = Manifest(
    Path("."), ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"), LABELS, TARGETS,
    np.array(["test"] * 4), known=(TARGETS > 0) | (np.arange(12).reshape(4, 3) % 5 > 0),
)  # fmt: skip
SCORES = np.random.default_rng(0).random((4, 3), dtype=np.float32)


def write_csv(path: Path, images: list[str], labels: list[str], scores: np.ndarray) -> Path:
    quoted = ",".join(f'"{label}"' for label in labels)
    lines = [f"image,{quoted}"]
    lines += [f"{n},{','.join(map(repr, r))}" for n, r in zip(images, scores.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_saved_scores_come_back_exactly(tmp_path: Path) -> None:
    thresholds = np.array([0.1, 0.5, 0.9], dtype=np.float32)
    SavedScores.of(SAMPLES, SCORES, thresholds).save(tmp_path / "scores.npz")
    found = SavedScores.load(tmp_path / "scores.npz")
    assert (found.images, found.labels) == (SAMPLES.names, LABELS)
    for name, value in (("scores", SCORES), ("targets", TARGETS), ("thresholds", thresholds)):
        assert getattr(found, name).dtype == value.dtype
        np.testing.assert_array_equal(getattr(found, name), value)
    np.testing.assert_array_equal(found.known, SAMPLES.known)
    np.testing.assert_array_equal(found.for_samples(SAMPLES), SCORES)


@pytest.mark.parametrize("with_folders", [True, False])
def test_a_csv_in_another_order_is_put_into_that_of_the_samples(
    tmp_path: Path, with_folders: bool
) -> None:
    order, columns = [2, 0, 3, 1], [1, 2, 0]
    images = [SAMPLES.names[i] if with_folders else SAMPLES.names[i][2:] for i in order]
    path = write_csv(
        tmp_path / "s.csv",
        [*images, "another.jpg"],
        [LABELS[c] for c in columns],
        np.vstack([SCORES[np.ix_(order, columns)], SCORES[:1]]),
    )
    np.testing.assert_allclose(SavedScores.load(path).for_samples(SAMPLES), SCORES, atol=1e-7)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    names, labels = list(SAMPLES.names), list(LABELS)
    fewer = SavedScores.load(write_csv(tmp_path / "s.csv", names[:3], labels, SCORES[:3]))
    with pytest.raises(click.ClickException, match="1 of 4 images, '4.jpg'"):
        fewer.for_samples(SAMPLES)
    narrow = SavedScores.load(write_csv(tmp_path / "s.csv", names, labels[1:], SCORES[:, 1:]))
    with pytest.raises(click.ClickException, match="1 of 3 labels, 'sky'"):
        narrow.for_samples(SAMPLES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no header"),
        ("name,a\n1,0.5\n", "no header"),
        ("image,a\n1.jpg,0.5,0.5\n", ":2 has 3 cells, but the header 2"),
        ("image,a\n1.jpg,much\n", "could not convert"),
        ("image,a\n1.jpg,1.5\n", "from 0 to 1"),
        ("image,a\n1.jpg,nan\n", "from 0 to 1"),
        ("image,a\n1.jpg,0.5\n1.jpg,0.5\n", "'1.jpg' is twice"),
        ("image,a,a\n1.jpg,0.5,0.5\n", "'a' is twice"),
    ],
)
def test_a_csv_in_another_form_is_told_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(click.ClickException, match=reason) as raised:
        SavedScores.load(tmp_path / "s.csv")
    assert "\n" not in raised.value.message


def test_an_npz_that_is_none_or_holds_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for content in (b"no archive", b"PK no archive", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(click.ClickException, match="cannot read|not a UTF-8") as caught:
            SavedScores.load(path)
        assert "pickle" not in caught.value.message  # numpy advises to execute it
    np.savez(path, images=np.array(["a"]), labels=np.array(["b"]))
    with pytest.raises(click.ClickException, match="scores"):
        SavedScores.load(path)
    objects = np.array([["x"]], dtype=object)
    np.savez(path, images=np.array(["a"]), labels=np.array(["b"]), scores=objects)
    with pytest.raises(click.ClickException, match="Object arrays"):
        SavedScores.load(path)
    np.savez(path, images=np.array(["a"]), labels=np.array(["b"]), scores=np.zeros((2, 1)))
    with pytest.raises(click.ClickException, match=r"\(2, 1\), not \(1, 1\)"):
        SavedScores.load(path)
    with pytest.raises(click.ClickException, match="no file"):
        SavedScores.load(tmp_path / "absent.npz")


def test_names_that_differ_in_their_folders_alone_are_not_guessed() -> None:
    scores = SavedScores(("x/1.jpg", "y/1.jpg"), LABELS, SCORES[:2])
    samples = Manifest(Path("."), ("1.jpg",), LABELS, TARGETS[:1], np.array(["test"]))
    with pytest.raises(click.ClickException, match=r"two images are called '1.jpg'"):
        scores.for_samples(samples)
