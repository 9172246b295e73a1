"""Training runs side by side: what differs in them, and what came out.

Owns the choice of runs, the table and its forms. Computes no figure of its own: all are read from
the runs' records.

    compare_runs("Default")  # or "RUN_ID,RUN_ID"
"""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Run as RecordedRun
from mlflow.exceptions import MlflowException

from nuswide import pages
from nuswide.evaluate import HEADLINE, baseline_key
from nuswide.metrics import NINE
from nuswide.plots import metric_bars
from nuswide.tracking import JOB_TAG, start_run

_FIGURES = tuple(f"{split}/{name}" for split in ("test", "val") for name in ("map", *NINE))
_COSTS = ("train/images_per_s", "train/seconds")
_BASELINES = {"all_labels": "all labels", "top_k": "top k"}
_NAME_WIDTH, _CELL_WIDTH = 22, 18


@dataclass(frozen=True)
class Row:
    """One line of the table: a param or a figure, a cell a column; best: columns to mark."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Table:
    """Columns are the runs, then the trivial baselines; remarks are what a reader must know."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def compare_runs(runs: str, *, across_test_sets: bool = False) -> None:
    """Compare runs given as ID,ID or as an MLflow experiment's name; print it and record it.

    across_test_sets: rank runs even though they were tested on different images. Raises
    click.ClickException if there are fewer than two runs to compare.
    """
    chosen = find_runs(runs)
    table = make_table(chosen, across_test_sets=across_test_sets)
    figure = _bars(table)
    with start_run("compare", f"comparison of {len(chosen)}") as run:
        run.log_params({"runs": runs})
        run.set_tags({"compared": ",".join(r.info.run_id for r in chosen)})
        run.log_text(to_csv(table), "comparison.csv")
        run.log_figure(figure, "comparison.png")
        run.log_text(to_html(table, figure), "comparison.html")
        run.set_note(f"```\n{to_text(table, 200)}\n```")
    click.echo(to_text(table, shutil.get_terminal_size((120, 24)).columns))
    click.echo(
        f"run {run.id}: its artifacts hold comparison.html and comparison.csv\n{run.address}"
    )


def find_runs(runs: str) -> list[RecordedRun]:
    """Fetch the training runs that finished, best test mAP first."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(runs)
    if experiment:
        query = f"tags.`{JOB_TAG}` = 'train' and attributes.status = 'FINISHED'"
        found = list(client.search_runs([experiment.experiment_id], query, max_results=1000))
    else:
        found = [_fetch(client, run_id.strip()) for run_id in runs.split(",")]
    if len({run.info.run_id for run in found}) < 2:
        raise click.ClickException(
            f"runs={runs} names {len(found)} finished training run(s), and a comparison needs two; "
            "give ID,ID or the name of an MLflow experiment with two"
        )
    return sorted(found, key=lambda run: -run.data.metrics.get("test/map", -1.0))


def _fetch(client: mlflow.MlflowClient, run_id: str) -> RecordedRun:
    try:
        run = client.get_run(run_id)
    except MlflowException:
        known = ", ".join(e.name for e in client.search_experiments())
        raise click.ClickException(
            f"there is no run and no MLflow experiment {run_id!r}; experiments: {known}"
        ) from None
    if run.data.tags.get(JOB_TAG) != "train" or run.info.status != "FINISHED":
        raise click.ClickException(f"run {run_id} is no finished training run; leave it out")
    return run


def make_table(runs: Sequence[RecordedRun], *, across_test_sets: bool = False) -> Table:
    """Lay out the params that differ, the data, the figures and the costs of runs."""
    data_rows = [
        Row(name, tuple(run.data.tags.get(tag, "unknown") for run in runs))
        for name, tag in (("protocol", "data.protocol"), ("test digest", "data.test_digest"))
    ]
    is_fair = len(set(data_rows[-1].cells)) == 1
    remarks = ["* best of its line"] if is_fair or across_test_sets else []
    if not is_fair:
        ranking = "read the ranks with care" if across_test_sets else "none is marked as best"
        remarks.append(f"These runs were tested on different images: {ranking}.")
    if any(run.data.params.get("select_on") == "test" for run in runs):
        remarks.append("Runs with select_on=test chose their weights on test: it flatters them.")
    baselines = _BASELINES if is_fair else {}
    blank = ("",) * len(baselines)
    settings = [Row(row.name, row.cells + blank) for row in (*_param_rows(runs), *data_rows)]
    figures = _figure_rows(runs, baselines, mark=is_fair or across_test_sets)
    names = (str(run.info.run_name) for run in runs)
    return Table((*names, *baselines.values()), (*settings, *figures), tuple(remarks))


def _param_rows(runs: Sequence[RecordedRun]) -> list[Row]:
    """The runs' ids, and the params in which they differ."""
    params = sorted({key for run in runs for key in run.data.params})
    rows = [Row(key, tuple(run.data.params.get(key, "") for run in runs)) for key in params]
    differing = [row for row in rows if len({_as_number(cell) for cell in row.cells}) > 1]
    return [Row("run", tuple(run.info.run_id[:8] for run in runs)), *differing]


def _figure_rows(
    runs: Sequence[RecordedRun], baselines: Mapping[str, str], *, mark: bool
) -> list[Row]:
    """The figures and costs that any run has, with those of the baselines on the same images."""
    recorded = [run.data.metrics for run in runs]
    return [
        _figure_row(
            key,
            [metrics.get(key) for metrics in recorded],
            [recorded[0].get(baseline_key(name, key.removeprefix("test/"))) for name in baselines],
            mark=mark and key != "train/seconds",
        )
        for key in (*_FIGURES, *_COSTS)
        if any(key in metrics for metrics in recorded)
    ]


def _as_number(cell: str) -> float | str:
    """`mlflow run` records a param as it was typed: 1e-4 and 0.0001 are no difference."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _figure_row(
    key: str, values: Sequence[float | None], baselines: Sequence[float | None], *, mark: bool
) -> Row:
    """A figure of each run, the best marked, then the baselines', which compete for nothing."""
    known = [value for value in values if value is not None]
    lower_wins = key.endswith(("loss", "error"))
    top = min(known) if lower_wins else max(known)
    best = frozenset(i for i, value in enumerate(values) if mark and value == top)
    digits = 0 if key in _COSTS else 3
    cells = ("" if value is None else f"{value:.{digits}f}" for value in (*values, *baselines))
    return Row(key, tuple(cells), best)


def _bars(table: Table) -> Figure:
    keys = [f"test/{name}" for name in HEADLINE]
    figures = {
        column: {
            row.name.removeprefix("test/"): float(row.cells[i])
            for row in table.rows
            if row.name in keys and row.cells[i]
        }
        for i, column in enumerate(table.columns)
    }
    return metric_bars(figures, "on test")


def to_text(table: Table, width: int) -> str:
    """Write the table for a terminal `width` characters wide, in as many blocks as it takes."""
    per_block = max(1, (width - _NAME_WIDTH) // (_CELL_WIDTH + 1))
    lines = []
    for start in range(0, len(table.columns), per_block):
        shown = range(start, min(start + per_block, len(table.columns)))
        lines.append(_text_line("", [f"{table.columns[i]} " for i in shown]))
        for row in table.rows:
            cells = [row.cells[i] + ("*" if i in row.best else " ") for i in shown]
            lines.append(_text_line(row.name, cells))
        lines.append("")
    return "\n".join([*lines, *table.remarks])


def _text_line(name: str, cells: Sequence[str]) -> str:
    shortened = (c if len(c) <= _CELL_WIDTH else f"{c[: _CELL_WIDTH - 1]}…" for c in cells)
    return f"{name:{_NAME_WIDTH}s}" + " ".join(f"{cell:>{_CELL_WIDTH}s}" for cell in shortened)


def to_csv(table: Table) -> str:
    """Write the table as CSV, without the marks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *table.columns])
    writer.writerows([row.name, *row.cells] for row in table.rows)
    return text.getvalue()


def to_html(table: Table, figure: Figure) -> str:
    """Write the table and the figure as one page that needs no network."""
    return pages.page(
        "Comparison of runs",
        pages.table(
            ["", *table.columns],
            [(row.name, *row.cells) for row in table.rows],
            [row.best for row in table.rows],
        ),
        *map(pages.paragraph, table.remarks),
        pages.picture(figure, "Bars of the runs' figures on test"),
    )
