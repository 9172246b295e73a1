"""The commands that deploy a model: quantize, serve, tag."""

from pathlib import Path
from typing import Any

import click

from nuswide.cli.options import (
    cache_option,
    extra,
    model_option,
    one_line_errors,
    option,
    settings_options,
    switch,
)
from nuswide.core.wording import counted
from nuswide.deployment.serve.settings import Settings


@click.command()
@model_option
@option("--data", help="Folder of the model's data set, if it has moved.")
@option("--images", type=click.IntRange(1), default=256, help="Training images to calibrate on.")
@option(
    "--most_lost", type=click.FloatRange(0, 1), default=0.005,
    help="Maximum loss of mAP on val; if int8 loses more, nothing is registered.",
)  # fmt: skip
@cache_option
@one_line_errors
def quantize(model: str, data: str | None, images: int, most_lost: float, cache: Path) -> None:
    """Register a smaller and faster int8 variant of a model if it is as good on val."""
    from nuswide.deployment.quantize import quantize

    quantize(model, data=data, cache=cache, images=images, most_lost=most_lost)


@click.command()
@model_option
@option("--host", default="127.0.0.1", help="Address to listen on.")
@option("--port", type=click.IntRange(1, 65535), default=5001)
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
@option("--out", required=True, help="Folder for the Parquet parts.")
@option("--engine", type=click.Choice(["local", "spark"]), default="local")
@option(
    "--threshold", type=click.FloatRange(0, 1),
    help="Score from which any label is predicted.  [the model's own thresholds]",
)  # fmt: skip
@option(
    "--top_k", type=click.IntRange(0), default=0,
    help="Maximum labels per image, of those that reach their thresholds; 0 for no limit.",
)  # fmt: skip
@switch("--all_scores", help="Add a column with the scores of all labels.")
@switch("--strict", help="Exit with 1 if an image is rejected or a file is skipped.")
@option(
    "--part_size", type=click.IntRange(1), default=1000,
    help="Images per part, the most work that a kill can lose. Local engine.",
)  # fmt: skip
@option(
    "--batch_size", type=click.IntRange(1), default=8, help="Images per batch, for each worker."
)
@option("--workers", type=click.IntRange(1), help="Worker processes. Local engine.  [one per core]")
@option("--master", help="Spark's master.  [spark-submit's, or local[*]]")
@option(
    "--partition_by", metavar="COLUMN,COLUMN",
    help="Columns of a source table to keep and to partition the result by. Spark engine.",
)  # fmt: skip
@one_line_errors
def tag(model: str, source: str, out: str, engine: str, strict: bool, **options: Any) -> None:
    """Tag the images of SOURCE with MODEL.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder. SOURCE is a folder of
    images (other files in it are skipped and listed), a quoted glob, a data set as for training, or
    a text file with one path per line; for Spark also an address (hdfs://, s3a://) of these, or a
    table with the columns path and content: FOLDER.parquet or table:NAME.

    Run the same command again to continue after an interruption.
    """
    from nuswide.deployment.batch.job import tag

    summary = tag(model, source, out, engine=engine, **options)
    click.echo(str(summary))
    if strict and (summary.rejected or summary.skipped):
        raise click.ClickException(
            f"--strict was given; {counted(summary.rejected, 'image was', 'images were')} rejected "
            f"and {counted(summary.skipped, 'file')} skipped"
        )
