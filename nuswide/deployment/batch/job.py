"""One tagging from start to end, by either engine.

Owns the order of things. Imports pyspark only for the engine of that name.

    summary = tag("models:/nuswide-tagger@champion", "photos/", "tags.parquet", all_scores=True)
"""

import time
from pathlib import Path
from typing import Any

import click

from nuswide.core.machine import available_cores
from nuswide.deployment.batch.image_list import list_pictures
from nuswide.deployment.batch.local import tag_here
from nuswide.deployment.batch.parts import LISTED, REJECTED, Parts, describe, exclusive_lock
from nuswide.deployment.batch.request import Model, Options, Summary, find_model


def tag(
    address: str,
    source: str,
    out: str,
    *,
    engine: str = "local",
    workers: int | None = None,
    master: str | None = None,
    partition_by: str | None = None,
    **options: Any,
) -> Summary:
    """Tag a source's pictures with a model into a folder of Parquet parts.

    engine: `local` or `spark`. workers: processes of the local engine, one a core if None. master,
    partition_by: Spark's. options: fields of Options. Raises click.ClickException for whatever is
    wrong.
    """
    chosen = Options(**options)
    model = find_model(address, chosen.threshold)
    if engine == "spark":
        from nuswide.deployment.batch.spark import tag_on_spark

        columns = partition_by.split(",") if partition_by else []
        return tag_on_spark(model, source, out, chosen, master, columns)
    for name, value in {"master": master, "partition_by": partition_by}.items():
        if value:
            raise click.UsageError(f"--{name} is for --engine spark")
    return _tag_here(model, source, Path(out), chosen, workers or available_cores())


def _tag_here(model: Model, source: str, out: Path, options: Options, workers: int) -> Summary:
    """Tag with this machine's cores; what an earlier process wrote there is kept."""
    with exclusive_lock(out):
        listing = list_pictures(source, out / LISTED)
        parts = Parts(out, describe(model, source, listing, options))
        parts.begin()
        done = sum(map(parts.size, parts.done))
        click.echo(
            f"{listing.count:,} pictures of the {listing.kind} {source}, tagged by {model.uri}"
            + (f"; {done:,} are done" if done else ""),
            err=True,
        )
        start = time.perf_counter()
        if done < listing.count:
            tag_here(parts, model.bundle, listing.file, options.batch_size, workers)
        seconds = time.perf_counter() - start
        rejected = parts.finish()
    return Summary(
        str(out), listing.count, rejected, str(out / REJECTED), listing.count - done, seconds
    )
