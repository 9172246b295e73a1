"""The commands on models: evaluate, compare, promote, quantize, serve, tag."""

from pathlib import Path
from typing import Any

import click

from nuswide.cli.options import cache_option, extra, model_option, one_line_errors, settings_options
from nuswide.deployment.serve.settings import Settings


@click.command()
@model_option
@click.option("--data", default="sample", show_default=True, help="Folder, or `sample`.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="Judge these scores, an npz or CSV, instead of a model.",
)
@click.option(
    "--thresholds",
    type=click.Choice(["fixed", "global", "label"]),
    default="fixed",
    show_default=True,
    help="With --scores: how thresholds come about; fitted ones from the data's val split.",
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="With --scores: the fixed threshold.",
)  # fmt: skip
@cache_option
@one_line_errors
def evaluate(
    model: str, data: str, split: str, scores: Path | None, thresholds: str, threshold: float,
    cache: Path,
) -> None:  # fmt: skip
    """Measure a registered model, or another program's scores, on a split of a data set."""
    from nuswide.evaluation import commands

    if scores:
        commands.evaluate_scores(scores, data, split, thresholds=thresholds, threshold=threshold)
    else:
        commands.evaluate_registered(model, data, split, cache)


@click.command()
@click.option(
    "--runs",
    default="Default",
    show_default=True,
    help="Run IDs, MLflow experiments and models:/ addresses, parted by commas.",
)
@click.option(
    "--baseline",
    help="The one of them that the others are measured against; by default the best on val.",
)
@click.option(
    "--across_test_sets",
    type=bool,
    default=False,
    show_default=True,
    help="Show what was tested on different images, too, unpaired.",
)
@click.option(
    "--pool_seeds",
    type=bool,
    default=True,
    show_default=True,
    help="Take training runs that differ in their seed alone as one.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder for page, tables and drawings, too."
)
@one_line_errors
def compare(
    runs: str, baseline: str | None, across_test_sets: bool, pool_seeds: bool, out: Path | None
) -> None:
    """Put runs and registered versions side by side, with paired differences."""
    from nuswide.evaluation.compare import compare_runs

    compare_runs(
        runs,
        baseline=baseline,
        across_test_sets=across_test_sets,
        pool_seeds=pool_seeds,
        out=out,
    )


@click.command()
@click.option(
    "--model",
    default="models:/nuswide-tagger/latest",
    show_default=True,
    help="The challenger, models:/NAME/VERSION; for a rollback only its name counts.",
)
@click.option(
    "--figure", default="map", show_default=True, help="On val: map, micro/f1, macro/f1 ..."
)
@click.option(
    "--rule",
    default="better",
    show_default=True,
    help="better: the difference's 95 % interval is above margin; not_worse: above -margin.",
)
@click.option("--margin", type=float, default=0.0, show_default=True, help="Of the figure.")
@click.option(
    "--rollback",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    help="Give the alias back to the champion so many back; 1 without a number.",
)
@one_line_errors
def promote(model: str, figure: str, rule: str, margin: float, rollback: int | None) -> None:
    """Make a version champion if it is better on val, or take that back."""
    from nuswide.evaluation import promote

    if rollback:
        name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        click.echo(promote.roll_back(name, steps=rollback))
    else:
        click.echo(promote.promote(model, promote.Rule(figure, rule, margin)))


@click.command()
@model_option
@click.option("--data", help="Where its data set is now, if elsewhere than it was.")
@click.option(
    "--images", type=click.IntRange(1), default=256, show_default=True,
    help="Train pictures to calibrate on.",
)  # fmt: skip
@click.option(
    "--most_lost", type=click.FloatRange(0, 1), default=0.005, show_default=True,
    help="Of val's mAP; if int8 costs more, nothing is registered.",
)  # fmt: skip
@cache_option
@one_line_errors
def quantize(model: str, data: str | None, images: int, most_lost: float, cache: Path) -> None:
    """Register an int8 variant of a model, which is smaller and faster, if it is as good on val."""
    from nuswide.deployment.quantize import quantize

    quantize(model, data=data, cache=cache, images=images, most_lost=most_lost)


@click.command()
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@settings_options
@one_line_errors
def serve(model: str, host: str, port: int, **limits: Any) -> None:
    """Serve a registered model: MLflow's /invocations with limits, and a page to try it at /."""
    try:
        settings = Settings(**limits)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with extra("serve"):
        from nuswide.deployment.serve.server import serve_model

    serve_model(model, host, port, settings)


@click.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", required=True, help="Folder for the Parquet parts.")
@click.option("--engine", type=click.Choice(["local", "spark"]), default="local", show_default=True)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score at which a label is given, for all labels.  [the model's own]",
)
@click.option(
    "--top_k", type=click.IntRange(0), default=0, show_default=True,
    help="The most labels a picture gets; 0: any number.",
)  # fmt: skip
@click.option(
    "--all_scores", type=bool, is_flag=False, flag_value=True, default=False, show_default=True,
    help="Add a column of every label's score.",
)  # fmt: skip
@click.option(
    "--strict", type=bool, is_flag=False, flag_value=True, default=False, show_default=True,
    help="Exit with 1 if a picture is rejected.",
)  # fmt: skip
@click.option(
    "--part_size", type=click.IntRange(1), default=1000, show_default=True,
    help="Pictures to a part; a kill costs the work on one at most. Local engine.",
)  # fmt: skip
@click.option(
    "--batch_size", type=click.IntRange(1), default=8, show_default=True,
    help="Pictures scored at once, by each worker.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), help="Worker processes. Local engine.  [one a core]"
)
@click.option("--master", help="Spark's master.  [spark-submit's, or local[*]]")
@click.option(
    "--partition_by", metavar="COLUMN,COLUMN",
    help="Columns of a source table to keep and to part the result by. Spark engine.",
)  # fmt: skip
@one_line_errors
def tag(model: str, source: str, out: str, engine: str, strict: bool, **options: Any) -> None:
    """Tag the pictures of SOURCE with MODEL.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder. SOURCE is a folder of
    pictures, a glob in quotes, a data set as for training, or a text file with a path a line; for
    Spark also an address (hdfs://, s3a://) of these, or a table with the columns path and content:
    FOLDER.parquet or table:NAME.

    The same command goes on with what was interrupted.
    """
    from nuswide.deployment.batch.job import tag

    summary = tag(model, source, out, engine=engine, **options)
    click.echo(str(summary))
    if strict and summary.rejected:
        raise click.ClickException(f"{summary.rejected} pictures were rejected, and --strict given")
