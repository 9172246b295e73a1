"""Runs and registered versions side by side: what came out, what differs, and what is only noise.

Owns the order of a comparison and its record; the modules beside own who takes part, the paired
statistics, the tables, the drawings and the page. Trains and scores nothing: all is in the record.

    compare_runs("Default")  # or "RUN_ID,models:/nuswide-tagger/3,models:/nuswide-tagger@champion"
"""

import shutil

import click

from nuswide.compare import figures, report, tables
from nuswide.compare.entrants import choose_baseline, find_entrants, require_one_test_set
from nuswide.compare.paired import Comparison, measure
from nuswide.tracking import Run, start_run

__all__ = ["compare_runs"]


def compare_runs(
    runs: str,
    *,
    baseline: str | None = None,
    across_test_sets: bool = False,
    pool_seeds: bool = True,
) -> None:
    """Compare runs and versions; print it and record it as a run of its own.

    runs: IDs of runs, names of MLflow experiments and models:/ addresses, parted by commas.
    baseline: the one of them, as it is named there, that the others are measured against; None for
    the best by val. across_test_sets: show what was tested on different images, without pairing.
    pool_seeds: take training runs that differ in their seed alone as one.

    Raises click.ClickException if there are fewer than two to compare, or the test sets differ.
    """
    entrants = find_entrants(runs, pool_seeds=pool_seeds)
    one_test_set = require_one_test_set(entrants, across_test_sets=across_test_sets)
    chosen = choose_baseline(entrants, baseline)
    comparison = measure(entrants, chosen, is_paired=one_test_set)
    with start_run("compare", f"comparison of {len(entrants)}") as run:
        run.log_params({"runs": runs, "baseline": comparison.baseline or "none"})
        _record(run, comparison)
        run.set_note(f"```\n{tables.to_text(comparison, 200)}\n```")
    click.echo(tables.to_text(comparison, shutil.get_terminal_size((120, 24)).columns))
    click.echo(
        f"run {run.id}: its artifacts hold comparison.html, comparison.csv, differences.csv and "
        f"labels.csv\n{run.address}"
    )


def _record(run: Run, comparison: Comparison) -> None:
    ids = [r.info.run_id for entrant in comparison.entrants for r in entrant.runs]
    run.set_tags({"compared": ",".join(ids)[:4000]})
    run.log_text(tables.to_csv(tables.overview(comparison)), "comparison.csv")
    run.log_table(tables.columns_of(tables.overview(comparison)), "comparison.json")
    for name, table in (
        ("differences", tables.differences(comparison)), ("labels", tables.labels(comparison)),
    ):  # fmt: skip
        if table.rows:
            run.log_text(tables.to_csv(table), f"{name}.csv")
            run.log_table(tables.columns_of(table), f"{name}.json")
    drawn = figures.draw_all(comparison)
    for name, figure in drawn.items():
        run.log_figure(figure, f"{name}.png")
    run.log_text(report.to_html(comparison, drawn), "comparison.html")
