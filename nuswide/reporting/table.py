"""Tables: one type, and its writers for a terminal, Markdown, HTML and CSV.

Owns how cells are formatted and aligned. Knows nothing of what the tables say.

    >>> print(to_markdown(make_table(["label", Column("AP", ".3f")], [("sky", 0.9)])))
    | label | AP |
    | --- | --- |
    | sky | 0.900 |
"""

import csv
import html
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NOTHING = "–"
_MOST_NAME, _LEAST_NAME = 32, 12  # characters of the first column where the width is limited
_LONG = 30  # characters of a cell that asks for more room on a page


@dataclass(frozen=True)
class Column:
    """A column's title, and the format specification of its numbers; "" formats them by size."""

    title: str
    format: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell with more than a value: its interval, a note, and a CSS class.

    A page shows interval and note on lines of their own; a terminal and Markdown have no note.
    """

    text: str
    interval: str = ""
    note: str = ""
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """Columns, and rows of values: text, numbers, None for what is not defined, or Cells."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __getitem__(self, title: str) -> list[Any]:
        """Return the values of the first column with this title."""
        index = [column.title for column in self.columns].index(title)
        return [row[index] for row in self.rows]

    def first(self, count: int) -> "Table":
        """Return the table of the first rows."""
        return Table(self.columns, self.rows[:count])

    def texts(self) -> list[tuple[str, ...]]:
        """Return the rows as they are shown."""
        formats = [column.format for column in self.columns]
        return [tuple(map(format_value, row, formats)) for row in self.rows]

    def as_dict(self) -> dict[str, list[Any]]:
        """Return title -> values, the form that MLflow records.

        A column that mixes text and numbers becomes text; one without a title is named `row`.
        """
        found = {}
        for index, column in enumerate(self.columns):
            values = [row[index] for row in self.rows]
            if any(isinstance(value, str) for value in values):
                values = [None if value is None else str(value) for value in values]
            found[column.title or "row"] = values
        return found


def make_table(columns: Iterable[Column | str], rows: Iterable[Sequence[Any]]) -> Table:
    """Make a table of rows. columns: a title alone stands for a column without a format."""
    made = tuple(Column(c) if isinstance(c, str) else c for c in columns)
    return Table(made, tuple(map(tuple, rows)))


def table_of(columns: Mapping[str, Sequence[Any]]) -> Table:
    """Make a table of title -> values; raises ValueError if the columns differ in length."""
    return make_table(columns, zip(*columns.values(), strict=True))


def format_value(value: Any, form: str = "") -> str:
    """Format a value: by its column's format, or three digits, or as it is.

    Large numbers get commas; None and NaN become a dash.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _NOTHING
    if form and isinstance(value, int | float):
        return format(value, form)
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        return f"{value:.1g}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def to_text(table: Table, width: int | None = None) -> str:
    """Write aligned columns, in blocks of as many as fit; each block begins with the first column.

    width: in characters, None for no limit. Longer cells are cut.
    """
    titles = tuple(column.title for column in table.columns)
    first, *others = zip(titles, *table.texts(), strict=True)
    most_name = max(map(len, first))
    if width is not None:
        most_name = max(_LEAST_NAME, min(_MOST_NAME, width // 3))
    names = _padded(first, most_name)
    room = sys.maxsize if width is None else max(8, width - len(names[0]) - 2)
    blocks = [[names]]
    used = 0
    for column in (_padded(cells, room) for cells in others):
        if used and used + len(column[0]) > room:
            blocks.append([names])
            used = 0
        blocks[-1].append(column)
        used += len(column[0]) + 2
    return "\n\n".join(
        "\n".join("  ".join(line).rstrip() for line in zip(*block, strict=True)) for block in blocks
    )


def _padded(cells: Sequence[str], most: int) -> list[str]:
    """Cells of one width, `most` characters at most: words to the left, numbers to the right."""
    width = min(most, max(map(len, cells)))
    cut = [cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell in cells]
    side = "<" if _has_words(cells[1:]) else ">"
    return [f"{cell:{side}{width}s}" for cell in cut]


def to_markdown(table: Table) -> str:
    """Write a table in Markdown."""
    titles = [column.title for column in table.columns]
    lines = [titles, ["---"] * len(titles), *table.texts()]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_csv(table: Table) -> str:
    """Write CSV, numbers without commas: by their column's format, or with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.title for column in table.columns)
    writer.writerows(
        [_csv_value(value, column.format) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    )
    return text.getvalue()


def _csv_value(value: Any, form: str) -> str:
    if isinstance(value, int | float) and not math.isnan(value):
        return format(value, form.replace(",", "") or (".6g" if isinstance(value, float) else ""))
    return value if isinstance(value, str) else ""


def to_html(table: Table, *, caption: str = "", sortable: bool = False, sorted_by: str = "") -> str:
    """Write a table whose first column heads the rows, every text escaped.

    Columns of words stand to the left, others to the right. sortable: by a click or key on a
    column's head, where scripts may run. sorted_by: the column whose values fall already.
    """
    rows = table.texts()
    words = [_words_class([row[i] for row in rows]) for i in range(len(table.columns))]
    head = "".join(
        f"<th scope=col{' aria-sort=descending' if column.title == sorted_by else ''}"
        f"{mark}>{html.escape(column.title)}</th>"
        for column, mark in zip(table.columns, words, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(map(_html_cell, row, shown, words, range(len(row))))}</tr>"
        for row, shown in zip(table.rows, rows, strict=True)
    )
    start = "<table class=sortable>" if sortable else "<table>"
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    whole = f"{start}{said}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    # What scrolls must be reachable by keys.
    name = html.escape(caption or f"Table by {table.columns[0].title or 'row'}")
    return f'<div class=wide role=region tabindex=0 aria-label="{name}">{whole}</div>'


def _html_cell(value: Any, text: str, words: str, index: int) -> str:
    content, mark = html.escape(text), words
    if isinstance(value, Cell):
        small = (f"<small>{html.escape(t)}</small>" for t in (value.interval, value.note) if t)
        content = html.escape(value.text) + "".join(small)
        mark = f" class={value.kind}" if value.kind else words
    return f"<td{mark}>{content}</td>" if index else f"<th scope=row>{content}</th>"


def _words_class(cells: Sequence[str]) -> str:
    """Return the class of a column: none if it holds numbers; long words ask for room."""
    if not _has_words(cells):
        return ""
    return ' class="words long"' if max(map(len, cells)) > _LONG else " class=words"


def _has_words(cells: Sequence[str]) -> bool:
    """Whether a column holds words, and no number."""
    said = [cell for cell in cells if any(c.isalnum() for c in cell)]
    return bool(said) and not any(_is_number(cell) for cell in said)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number, with a unit perhaps: 3, 1e-05, 12 (3.4%), nan."""
    try:
        float(cell)
    except ValueError:
        return not any(c.isalpha() for c in cell)
    return True
