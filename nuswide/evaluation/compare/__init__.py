"""Comparison of runs and registered versions: metrics, differences, and which are significant.

Owns the order of a comparison and its record; the modules beside own who takes part, the paired
statistics, the tables, the plots and the page. Trains and scores nothing: all is recorded.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from nuswide.evaluation.compare import plots, report, tables
from nuswide.evaluation.compare.entrants import choose_baseline, find_entrants, require_one_test_set
from nuswide.evaluation.compare.paired import Comparison, measure
from nuswide.reporting.table import Table, to_csv
from nuswide.tracking.run import Run, start_run

__all__ = ["compare_runs"]


def compare_runs(
    runs: str,
    *,
    baseline: str | None = None,
    across_test_sets: bool = False,
    pool_seeds: bool = True,
    out: Path | None = None,
) -> None:
    """Compare runs and versions; print it and record it as a run of its own.

    runs: IDs of runs, names of MLflow experiments and models:/ addresses, separated by commas.
    baseline: the one of them that the others are compared with, as it is named there; None for the
    best on val. across_test_sets: allow different test images, which cannot be paired. pool_seeds:
    treat training runs that differ only in their seed as one. out: a folder for a copy of the page,
    the tables and the plots.

    Raises click.ClickException if there are fewer than two to compare, or the test sets differ.
    """
    entrants = find_entrants(runs, pool_seeds=pool_seeds)
    one_test_set = require_one_test_set(entrants, across_test_sets=across_test_sets)
    chosen = choose_baseline(entrants, baseline)
    comparison = measure(entrants, chosen, is_paired=one_test_set)
    made = _make(comparison)
    if out:
        _write(out, made)
    with start_run("compare", f"comparison of {len(entrants)}") as run:
        run.log_params({"runs": runs, "baseline": comparison.baseline or "none"})
        _record(run, comparison, made)
        run.set_note(f"```\n{tables.to_text(comparison, 200)}\n```")
    click.echo(tables.to_text(comparison, shutil.get_terminal_size((120, 24)).columns))
    click.echo(
        f"run {run.id}: its artifacts hold comparison.html and .md, and metrics, differences and "
        f"labels as CSV\n{run.address}"
    )


@dataclass(frozen=True)
class _Made:
    """The files of a comparison, by name: tables, texts and plots."""

    tables: dict[str, Table]
    texts: dict[str, str]
    drawn: dict[str, Image.Image]


def _make(comparison: Comparison) -> _Made:
    found = {
        "comparison": tables.overview(comparison),
        "differences": tables.differences(comparison),
        "labels": tables.labels(comparison),
    }
    found = {name: table for name, table in found.items() if table.rows}
    drawn = plots.draw_all(comparison)
    texts = {f"{name}.csv": to_csv(table) for name, table in found.items()}
    texts["comparison.md"] = tables.to_markdown(comparison)
    texts["comparison.html"] = report.to_html(comparison, drawn)
    return _Made(found, texts, drawn)


def _write(out: Path, made: _Made) -> None:
    try:
        for name in (*made.texts, *made.drawn):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        for name, text in made.texts.items():
            (out / name).write_text(text, encoding="utf-8")
        for name, image in made.drawn.items():
            image.save(out / f"{name}.png")
    except OSError as error:
        raise click.ClickException(f"cannot write into {out}: {error.strerror}") from error


def _record(run: Run, comparison: Comparison, made: _Made) -> None:
    ids = [r.info.run_id for entrant in comparison.entrants for r in entrant.runs]
    run.set_tags({"compared": ",".join(ids)[:4000]})
    for name, table in made.tables.items():
        run.log_table(table.as_dict(), f"{name}.json")
    for name, text in made.texts.items():
        run.log_text(text, name)
    for name, image in made.drawn.items():
        run.log_picture(image, f"{name}.png")
