"""One tagging from start to end, by either engine.

pyspark is imported only for the Spark engine.
"""

import time
from pathlib import Path
from typing import Any

import click

from nuswide.core.machine import available_cores
from nuswide.core.wording import counted
from nuswide.deployment.batch.image_list import list_images
from nuswide.deployment.batch.local import tag_locally
from nuswide.deployment.batch.parts import (
    LISTED,
    REJECTED,
    SKIPPED,
    TagParts,
    describe_job,
    exclusive_lock,
)
from nuswide.deployment.batch.request import ResolvedModel, TagOptions, TagSummary, resolve_model


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
) -> TagSummary:
    """Tag the images of a source with a model, into a folder of Parquet parts.

    engine: `local` or `spark`. workers: processes of the local engine; None for one a core. master,
    partition_by: Spark's. options: fields of TagOptions. Raises click.ClickException for invalid
    input.
    """
    chosen = TagOptions(**options)
    model = resolve_model(address, chosen.threshold)
    if engine == "spark":
        from nuswide.deployment.batch.spark import tag_on_spark

        columns = partition_by.split(",") if partition_by else []
        return tag_on_spark(model, source, out, chosen, master, columns)
    for name, value in {"master": master, "partition_by": partition_by}.items():
        if value:
            raise click.UsageError(f"--{name} requires --engine spark")
    return _tag_locally(model, source, Path(out), chosen, workers or available_cores())


def _tag_locally(
    model: ResolvedModel, source: str, out: Path, options: TagOptions, workers: int
) -> TagSummary:
    """Tag with the cores of this machine. Parts that an earlier process has written are kept."""
    with exclusive_lock(out):
        listing = list_images(source, out / LISTED, out / SKIPPED)
        parts = TagParts(out, describe_job(model, source, listing, options))
        parts.begin()
        done = sum(map(parts.size, parts.done))
        click.echo(
            f"tagging {counted(listing.count, 'image')} of the {listing.kind} {source} with "
            f"{model.uri}" + (f"; {counted(done, 'is done', 'are done')}" if done else ""),
            err=True,
        )
        start = time.perf_counter()
        if done < listing.count:
            tag_locally(parts, model.bundle, listing.file, options.batch_size, workers)
        seconds = time.perf_counter() - start
        rejected = parts.finish()
    return TagSummary(
        str(out), listing.count, rejected, str(out / REJECTED), listing.skipped, str(out / SKIPPED),
        listing.count - done, seconds,
    )  # fmt: skip
