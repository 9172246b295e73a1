"""The writers of tables, on tables small enough to be written by hand."""

import csv
import io

import pytest

from nuswide.reporting.table import (
    Cell,
    Column,
    format_value,
    make_table,
    table_of,
    to_csv,
    to_html,
    to_markdown,
    to_text,
)

NAN = float("nan")
TABLE = make_table(
    ["label", Column("AP", ".2f"), "images"], [("sky|sea", 0.9, 1200), ("boat", None, 7)]
)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".2f", "–"), (NAN, "", "–"), (0.5, "", "0.500"), (0.00012, "", "0.0001"),
        (12.345, "", "12.3"), (1234, "", "1,234"), (0.25, ".1%", "25.0%"), ("sky", ".2f", "sky"),
    ],
)  # fmt: skip
def test_values_are_formatted_by_their_column_or_by_their_size(
    value: object, form: str, text: str
) -> None:
    assert format_value(value, form) == text


def test_text_aligns_words_to_the_left_and_numbers_to_the_right() -> None:
    assert to_text(TABLE).splitlines() == [
        "label      AP  images",
        "sky|sea  0.90   1,200",
        "boat        –       7",
    ]


def test_text_that_does_not_fit_goes_on_in_blocks_that_begin_with_the_names() -> None:
    wide = make_table(["name", "first", "second"], [("a" * 30, "b" * 12, "c" * 12)])
    lines = to_text(wide, width=28).splitlines()
    assert lines == [
        "name          first", "aaaaaaaaaaa…  bbbbbbbbbbbb", "",
        "name          second", "aaaaaaaaaaa…  cccccccccccc",
    ]  # fmt: skip


def test_markdown_keeps_its_columns_whatever_a_name_holds() -> None:
    head, rule, *rows = to_markdown(TABLE).splitlines()
    assert head == "| label | AP | images |" and rule == "| --- | --- | --- |"
    assert rows == ["| sky\\|sea | 0.90 | 1,200 |", "| boat | – | 7 |"]


def test_csv_has_plain_numbers_and_nothing_for_what_is_not_defined() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows == [["label", "AP", "images"], ["sky|sea", "0.90", "1200"], ["boat", "", "7"]]


def test_a_cell_has_its_interval_everywhere_and_its_note_and_class_on_pages_alone() -> None:
    cell = Cell("▲ +0.1", "[+0.0, +0.2]", "p <0.001", "better")
    table = make_table(["name", "difference"], [("<b>", cell)])
    assert "▲ +0.1 [+0.0, +0.2]" in to_text(table) and "0.001" not in to_text(table)
    page = to_html(table)
    assert "<td class=better>▲ +0.1<small>[+0.0, +0.2]</small><small>p &lt;0.001</small>" in page
    assert "<th scope=row>&lt;b&gt;</th>" in page


def test_columns_that_mix_words_and_numbers_are_recorded_as_text() -> None:
    table = make_table(["", "a"], [("runs", "x"), ("n", 3), ("map", None)])
    assert table.as_dict() == {"row": ["runs", "n", "map"], "a": ["x", "3", None]}
    assert TABLE.as_dict()["AP"] == [0.9, None]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table_of({"a": [1, 2], "b": [1]})
