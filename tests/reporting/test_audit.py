"""The audit: counts and gaps by hand, a planted bias, planted duplicates, and a page to trust."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL, needs_real

from nuswide.data.dataset import Dataset
from nuswide.data.label_names import map_labels, read_label_map
from nuswide.data.manifest import Manifest
from nuswide.reporting.audit import (
    bias_table,
    findings,
    labels_table,
    make_audit,
    splits_table,
    tables,
    to_html,
    to_text,
    write_audit,
)
from nuswide.reporting.audit_checks import IMPLIED, find_bias, find_gaps


def manifest_of(targets: np.ndarray, labels: tuple[str, ...], n_test: int = 0) -> Manifest:
    n = len(targets)
    return Manifest(
        root=Path("."),
        names=tuple(f"{i}.jpg" for i in range(n)),
        labels=labels,
        targets=targets.astype(np.uint8),
        splits=np.array(["train"] * (n - n_test) + ["test"] * n_test),
    )


@pytest.fixture
def small() -> Manifest:
    """Five images: clouds with and without sky, and one without a label."""
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
    return manifest_of(targets, ("clouds", "sky", "<script>"), n_test=2)


def test_the_splits_are_counted(small: Manifest) -> None:
    assert splits_table(make_audit(small)).texts() == [
        ("train", "3", "1.67", "2", "0 (0.0%)", "0"),
        ("test", "2", "1.00", "2", "1 (50.0%)", "0"),
        ("all", "5", "1.40", "2", "1 (20.0%)", "0"),
    ]


def test_labels_are_counted_most_frequent_first(small: Manifest) -> None:
    table = labels_table(make_audit(small))
    titles = ["label", "train", "train share", "test", "test share"]
    assert [column.title for column in table.columns] == titles
    assert table.texts() == [
        ("clouds", "2", "0.6667", "1", "0.5000"),
        ("sky", "2", "0.6667", "1", "0.5000"),
        ("<script>", "1", "0.3333", "0", "0.0000"),
    ]


def test_co_occurrence_counts_images_with_both(small: Manifest) -> None:
    assert make_audit(small).together.tolist() == [[3, 2, 0], [2, 3, 1], [0, 1, 1]]


def test_a_label_that_is_missing_by_meaning_is_a_gap_however_often(small: Manifest) -> None:
    (gap,) = find_gaps(small)
    assert (gap.label, gap.implied, gap.images, gap.missing) == ("clouds", "sky", 3, 1)
    assert gap.examples == ("1.jpg",) and gap.by_meaning


def test_a_habit_is_a_gap_only_where_it_is_strong_and_of_many() -> None:
    usual = np.array([[1, 1]] * 27 + [[1, 0]] * 3 + [[0, 1]] * 30)
    (gap,) = find_gaps(manifest_of(usual, ("cup", "table")))
    assert (gap.label, gap.implied, gap.missing, gap.by_meaning) == ("cup", "table", 3, False)
    weak = np.array([[1, 1]] * 23 + [[1, 0]] * 7 + [[0, 1]] * 30)
    assert find_gaps(manifest_of(weak, ("cup", "table"))) == ()
    assert find_gaps(manifest_of(usual[15:32], ("cup", "table"))) == ()


def test_an_unknown_entry_is_no_gap(small: Manifest) -> None:
    known = np.ones((5, 3), bool)
    known[1, 1] = False
    assert find_gaps(replace(small, known=known)) == ()
    assert splits_table(make_audit(replace(small, known=known))).texts()[2][-1] == "1"


def test_no_label_implies_itself() -> None:
    assert all(label != whole for label, whole in IMPLIED)


def test_biased_first_rows_are_found_and_fair_ones_not() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((6000, 10)) < 0.2
    fair = find_bias(manifest_of(targets, tuple("abcdefghij")), 1000)
    assert fair is not None and not fair.is_off.any()
    targets[:1000, 3] = rng.random(1000) < 0.3
    off = find_bias(manifest_of(targets, tuple("abcdefghij")), 1000)
    assert off is not None and np.flatnonzero(off.is_off).tolist() == [3]
    audit = make_audit(manifest_of(targets, tuple("abcdefghij")), first_rows=1000)
    assert bias_table(audit).rows[0][0] == "d" and bias_table(audit).rows[0][-1] == "yes"
    assert any("1 of 10 labels" in sentence for sentence in findings(audit))


def test_first_rows_that_are_most_rows_are_compared_with_nothing() -> None:
    assert find_bias(manifest_of(np.ones((100, 1)), ("a",)), 60) is None


@pytest.fixture
def pictures(small: Manifest) -> Dataset:
    """Five pictures; the second is the last, of another split, with other labels."""
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), dtype=np.uint8)
    images[4] = images[1]
    return Dataset(small, images, np.arange(5))


def test_duplicates_across_splits_are_told_with_their_labels(pictures: Dataset) -> None:
    audit = make_audit(pictures.manifest, pictures)
    (row,) = tables(audit)["duplicates"].texts()
    assert row == ("1.jpg", "train", "4.jpg", "test", "exact", "0", "differ")
    assert "1 pair of images is equal and 0 nearly so; 1 of these across splits" in to_text(audit)


def test_without_pictures_nothing_is_said_of_duplicates(small: Manifest) -> None:
    audit = make_audit(small)
    assert "not looked at" in to_text(audit) and "duplicates" not in tables(audit)


def test_labels_that_look_alike_or_are_absent_are_named(tmp_path: Path) -> None:
    targets = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
    audit = make_audit(manifest_of(targets, ("sky", "Sky ", "a|b", "sea"), n_test=1))
    assert tables(audit)["look_alikes"].texts() == [("Sky ", "sky", "1", "3")]
    assert tables(audit)["absent"].texts() == [
        ("Sky ", "test"), ("a|b", "train"), ("sea", "test"),
    ]  # fmt: skip
    said = to_text(audit)
    assert "1 group of labels looks alike, such as 'sky' and 'Sky '" in said
    assert "1 label contains a separator, such as 'a|b'" in said
    assert "3 of 4 labels have no image in some split, such as 'Sky ' in test" in said
    write_audit(audit, tmp_path)
    label_map = read_label_map(tmp_path / "look_alikes.csv", audit.manifest.labels)
    assert label_map == {"Sky ": "sky"}


def test_the_file_of_look_alikes_merges_all_also_if_the_commonest_ends_in_a_blank(
    tmp_path: Path,
) -> None:
    audit = make_audit(manifest_of(np.array([[1, 0], [1, 0], [0, 1]]), ("sky ", "sky")))
    write_audit(audit, tmp_path)
    label_map = read_label_map(tmp_path / "look_alikes.csv", audit.manifest.labels)
    assert map_labels(audit.manifest, label_map).labels == ("sky",)


def test_no_table_of_an_earlier_audit_is_left(small: Manifest, tmp_path: Path) -> None:
    (tmp_path / "duplicates.csv").write_text("somebody's")
    write_audit(make_audit(manifest_of(np.eye(2), ("sky", "Sky"))), tmp_path)
    assert {"look_alikes.csv", "duplicates.csv"} <= {path.name for path in tmp_path.iterdir()}
    write_audit(make_audit(small), tmp_path)
    assert not {"look_alikes.csv", "duplicates.csv"} & {path.name for path in tmp_path.iterdir()}


def test_images_that_were_left_out_are_listed(pictures: Dataset) -> None:
    rejected = (("lost.jpg", "No such file or directory"), ("bad.jpg", "truncated"))
    audit = make_audit(pictures.manifest, replace(pictures, rejected=rejected))
    assert tables(audit)["rejected"].texts() == list(rejected)
    assert "Left out: 2 further images, missing or not decodable" in to_text(audit)


def test_the_page_is_whole_escaped_and_asks_no_network(pictures: Dataset) -> None:
    text = to_html(make_audit(pictures.manifest, pictures))
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "http" not in text.replace("data:image", "")
    assert text.count("<img alt=") == 3 and 'alt=""' not in text
    for word in ("Splits", "missing by implication", "there twice", pictures.manifest.digest):
        assert word in text


def test_tables_and_figures_are_written_beside_the_page(pictures: Dataset, tmp_path: Path) -> None:
    write_audit(make_audit(pictures.manifest, pictures), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "audit.html", "splits.csv", "labels.csv", "absent.csv", "gaps.csv", "duplicates.csv",
        "label_distribution.png", "co_occurrence.png", "duplicates.png",
    }  # fmt: skip
    with (tmp_path / "out/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["label"] == "clouds" and int(rows[0]["train"]) == 2


@needs_real("nuswide")
def test_the_known_gaps_of_nus_wide_are_found() -> None:
    """Missing shares as they are known of the whole: 16, 85 and 60 %."""
    from nuswide.data.importers import read_annotations

    gaps = find_gaps(read_annotations(REAL / "nuswide", "article"))
    shares = {(gap.label, gap.implied): gap.missing / gap.images for gap in gaps}
    known = {("clouds", "sky"): 0.16, ("plane", "vehicle"): 0.85, ("tower", "buildings"): 0.6}
    for pair, share in known.items():
        assert shares[pair] == pytest.approx(share, abs=0.02)
