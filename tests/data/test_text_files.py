"""One reader for every text file of a user: annotations, splits, labels, scores, word vectors."""

import codecs
import gzip
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

from nuswide.data.importers import read_annotations
from nuswide.data.label_stats import read_word_vectors
from nuswide.data.prepare import prepare
from nuswide.data.text_files import read_table
from nuswide.tracking.score_file import SavedScores

TABLE = "image,labels,split\r\na.jpg,sea;sky,train\r\nb.jpg,sky,test\r\n"


def labels_of(path: Path) -> tuple[str, ...]:
    source = path.parent / "source.csv"
    source.write_text(TABLE)
    return prepare(source, path.parent / "out", labels=str(path)).labels


def splits_of(path: Path) -> list[str]:
    source = path.parent / "source.csv"
    source.write_text(TABLE)
    return prepare(source, path.parent / "out", split_file=path).splits.tolist()


def vector_of(path: Path) -> list[float]:
    return read_word_vectors(path, ("sky",))[0].tolist()


READERS: dict[str, tuple[str, Callable[[Path], object], object]] = {
    "splits.csv": ("image,split\na.jpg,test\nb.jpg,train\n", splits_of, ["test", "train"]),
    "labels.txt": ("sky\nsea\n", labels_of, ("sky", "sea")),
    "scores.csv": (
        "image,sky\na.jpg,0.25\n",
        lambda path: SavedScores.load(path).scores.tolist(),
        [[0.25]],
    ),
    "table.csv": (TABLE, lambda path: read_annotations(path).names, ("a.jpg", "b.jpg")),
    "train.lst": ("a.jpg,3 17\n", lambda path: read_annotations(path).names, ("a.jpg",)),
    "vectors.txt": ("sky 1 2\n", vector_of, [1.0, 2.0]),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("form", ["plain", "byte order mark", "gzip", "upper case"])
def test_a_text_file_may_have_a_byte_order_mark_gzip_or_an_upper_case_suffix(
    tmp_path: Path, name: str, form: str
) -> None:
    text, read, expected = READERS[name]
    content = text.encode()
    if form == "byte order mark":
        content = codecs.BOM_UTF8 + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if form == "gzip":
        name, content = f"{name}.gz", gzip.compress(content)
    if form == "upper case":
        name = name.upper()
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["TRAIN.TXT", "Train.Csv.GZ"])
def test_lists_and_tables_in_a_folder_are_found_in_any_case(tmp_path: Path, name: str) -> None:
    content = b"a.jpg,3 17\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert read_annotations(tmp_path).names == ("a.jpg",)


def test_a_table_of_scores_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "scores.tab").write_text("image,sky\na.jpg,0.25\n")
    assert SavedScores.load(tmp_path / "scores.tab").labels == ("sky",)
    np.savez(tmp_path / "s.npz", images=["a"], labels=["b"], scores=[[0.5]])
    (tmp_path / "s.npz").rename(tmp_path / "scores.bin")
    assert SavedScores.load(tmp_path / "scores.bin").scores.tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b\n1,2\n\n3\n", ":4 has 1 cells, but the header 2"),
        (b'a,b\n1,"2\n', "is not valid CSV"),
        ("a,b\n".encode("utf-16"), "is not a UTF-8 text file"),
        (gzip.compress(b"a,b\n")[:-4], "cannot read"),
    ],
    ids=["short_row", "open_quote", "utf16", "cut_gzip"],  # gzip holds the time
)
def test_a_damaged_table_is_one_line_that_names_it(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(click.ClickException, match=reason) as raised:
        list(read_table(tmp_path / "t.csv"))
    assert "\n" not in raised.value.message and "t.csv" in raised.value.message
