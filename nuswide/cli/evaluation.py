"""The commands on evaluations: evaluate, compare, promote."""

from pathlib import Path

import click

from nuswide.cli.options import (
    PATH,
    cache_option,
    data_option,
    model_option,
    one_line_errors,
    option,
)


@click.command()
@model_option
@data_option
@option("--split", type=click.Choice(["train", "val", "test"]), default="test")
@option("--scores", type=PATH, help="NPZ or CSV file of scores to evaluate instead of a model.")
@option(
    "--thresholds", type=click.Choice(["fixed", "global", "label"]), default="fixed",
    help="With --scores: fixed, or fitted on the val split of the data.",
)  # fmt: skip
@option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5,
    help="With --scores: the fixed threshold.",
)  # fmt: skip
@option(
    "--threshold_goal", default="f1",
    help="With --scores: what thresholds are fitted to, f1, f2 or another F-beta, or precision:P.",
)  # fmt: skip
@option(
    "--skip_rejected", type=bool, default=None, show_default="as in training",
    help="Leave out images that are missing or cannot be decoded.",
)  # fmt: skip
@cache_option
@one_line_errors
def evaluate(
    model: str, data: str, split: str, scores: Path | None, thresholds: str, threshold: float,
    threshold_goal: str, skip_rejected: bool | None, cache: Path,
) -> None:  # fmt: skip
    """Evaluate a registered model, or another program's scores, on a split of a data set."""
    from nuswide.evaluation import commands

    if not scores and (thresholds, threshold, threshold_goal) != ("fixed", 0.5, "f1"):
        raise click.UsageError(
            "thresholds, threshold and threshold_goal are for --scores: a model has its own "
            "thresholds; leave them out"
        )
    if scores:
        commands.evaluate_scores(
            scores, data, split, thresholds=thresholds, threshold=threshold, goal=threshold_goal
        )
    else:
        commands.evaluate_registered(model, data, split, cache, skip_rejected=skip_rejected)


@click.command()
@option(
    "--runs", default="Default",
    help="Run IDs, MLflow experiments and models:/ addresses, separated by commas.",
)  # fmt: skip
@option("--baseline", help="Run that the others are compared with; by default the best on val.")
@option(
    "--across_test_sets", type=bool, default=False,
    help="Allow runs tested on different images, without paired differences.",
)  # fmt: skip
@option(
    "--pool_seeds", type=bool, default=True,
    help="Pool training runs of one recipe that differ in their seed.",
)  # fmt: skip
@option("--out", type=PATH, help="Folder to write the page, tables and plots to as well.")
@one_line_errors
def compare(
    runs: str, baseline: str | None, across_test_sets: bool, pool_seeds: bool, out: Path | None
) -> None:
    """Compare runs and registered versions by paired differences."""
    from nuswide.evaluation.compare import compare_runs

    compare_runs(
        runs,
        baseline=baseline,
        across_test_sets=across_test_sets,
        pool_seeds=pool_seeds,
        out=out,
    )


@click.command()
@option(
    "--model", default="models:/nuswide-tagger/latest",
    help="Challenger, models:/NAME/VERSION; for a rollback only its name is used.",
)  # fmt: skip
@option("--figure", default="map", help="Metric on val: map, micro/f1, macro/f1 ...")
@option(
    "--rule", default="better",
    help="better: the 95 % interval of the difference is above margin; not_worse: above -margin.",
)  # fmt: skip
@option("--margin", type=float, default=0.0, help="Margin of the rule, in units of the metric.")
@option(
    "--rollback", type=click.IntRange(1), is_flag=False, flag_value=1,
    help="Return the alias to the champion this many promotions back; 1 without a number.",
)  # fmt: skip
@one_line_errors
def promote(model: str, figure: str, rule: str, margin: float, rollback: int | None) -> None:
    """Make a version the champion if it is better on val, or roll that back."""
    from nuswide.evaluation import promote

    if rollback:
        name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        click.echo(promote.roll_back(name, steps=rollback))
    else:
        click.echo(promote.promote(model, promote.Rule(figure, rule, margin)))
