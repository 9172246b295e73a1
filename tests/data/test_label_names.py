"""Labels that look alike, and their renaming by a file."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from nuswide.data.importers import read_annotations
from nuswide.data.label_names import look_alikes, map_labels, read_label_map, with_separators
from nuswide.data.manifest import Manifest
from nuswide.data.prepare import prepare

LABELS = ("Sky", "SKY", "sea", "sky ", "dog_house", "dog house", "cat")


def write_map(folder: Path, *lines: str) -> Path:
    (folder / "map.csv").write_text("\n".join(("from,to", *lines)) + "\n")
    return folder / "map.csv"


def manifest_of(targets: list[list[int]], labels: tuple[str, ...]) -> Manifest:
    names = tuple(f"{i}.jpg" for i in range(len(targets)))
    splits = np.array(["train"] * len(targets))
    return Manifest(Path("."), names, labels, np.array(targets, np.uint8), splits)


def test_labels_that_differ_in_case_blanks_or_hyphens_look_alike() -> None:
    assert look_alikes(LABELS) == [("Sky", "SKY", "sky "), ("dog_house", "dog house")]
    assert look_alikes(("sky", "skies", "été", "Éte")) == []
    assert look_alikes(("\u00e9t\u00e9", "e\u0301te\u0301")) == [
        ("\u00e9t\u00e9", "e\u0301te\u0301")
    ]


def test_separators_inside_labels_are_found() -> None:
    labels = ("a|b", "c, d", "e;f", "wild cat", "['x' 'y']", "rock-n-roll")
    assert with_separators(labels) == ["a|b", "c, d", "e;f", "['x' 'y']"]


def test_labels_are_renamed_merged_and_dropped() -> None:
    manifest = manifest_of([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]], ("Sky", "sky", "sea", "x"))
    mapped = map_labels(manifest, {"Sky": "sky", "sea": "ocean", "x": ""})
    assert mapped.labels == ("sky", "ocean")
    assert mapped.targets.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert mapped.label_map == {"Sky": "sky", "sea": "ocean", "x": ""}


def test_a_merged_label_is_unknown_where_it_may_be_present() -> None:
    manifest = replace(
        manifest_of([[1, 0], [0, 0], [0, 0]], ("Sky", "sky")),
        known=np.array([[True, False], [True, False], [True, True]]),
    )
    known = map_labels(manifest, {"Sky": "sky"}).known
    assert known is not None and known.tolist() == [[True], [False], [True]]


def test_a_label_map_is_recorded_with_the_data(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,Sky\nb.jpg,sky;junk\n")
    label_map = write_map(tmp_path, "Sky,sky", "junk,")
    prepared = prepare(tmp_path / "t.csv", tmp_path / "out", label_map=label_map)
    assert prepared.labels == ("sky",) and prepared.targets.tolist() == [[1], [1]]
    loaded = read_annotations(tmp_path / "out")
    assert loaded.label_map == {"Sky": "sky", "junk": ""} and loaded.digest == prepared.digest


@pytest.mark.parametrize(
    ("first", "then", "both"),
    [
        (["Sky,sky", "junk,"], ["sky,air"], {"Sky": "air", "junk": "", "sky": "air"}),
        (["Sky,sky"], ["sky,"], {"Sky": "", "sky": ""}),
        (["Sky,sea", "sea,Sky"], ["Sky,air"], {"Sky": "sea", "sea": "air"}),
    ],
)
def test_the_label_maps_of_two_preparations_are_recorded_as_one(
    tmp_path: Path, first: list[str], then: list[str], both: dict[str, str]
) -> None:
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,Sky\nb.jpg,sky;junk\nc.jpg,sea\n")
    prepare(tmp_path / "t.csv", tmp_path / "A", label_map=write_map(tmp_path, *first))
    prepare(tmp_path / "A", tmp_path / "B", label_map=write_map(tmp_path, *then))
    assert read_annotations(tmp_path / "B").label_map == both
    prepare(tmp_path / "B", tmp_path / "C")
    assert read_annotations(tmp_path / "C").label_map == both


def test_a_trailing_blank_in_a_label_can_be_mapped(tmp_path: Path) -> None:
    label_map = read_label_map(write_map(tmp_path, "cat ,cat"), ("cat", "cat "))
    assert label_map == {"cat ": "cat"}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("skyy,sky",), "map.csv:2: unknown label 'skyy'; did you mean sky?"),
        (("sky,a", "sky,b"), "map.csv:3: 'sky' is there twice"),
        (('sky,"a\nb"',), "label 'a\\nb' is not a plain line of text"),
    ],
)
def test_a_label_map_that_makes_no_sense_is_refused(
    tmp_path: Path, lines: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(click.ClickException) as raised:
        read_label_map(write_map(tmp_path, *lines), ("sky",))
    assert reason in raised.value.message


@pytest.mark.parametrize("text", ["old,new\nsky,sea\n", "sky,sea\n", ""])
def test_a_label_map_without_its_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(click.ClickException, match="needs the header from,to"):
        read_label_map(tmp_path / "map.csv", ("sky",))


def test_dropping_every_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,sky\n")
    with pytest.raises(click.ClickException, match="no image is left that has a label"):
        prepare(tmp_path / "t.csv", tmp_path / "out", label_map=write_map(tmp_path, "sky,"))
