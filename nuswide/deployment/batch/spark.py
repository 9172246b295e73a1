"""The Spark engine: the logged model as a function over a table of images.

Images are read and decoded on the executors, once, into the square that the model takes, and reach
the model as a small lossless image. An image that cannot be decoded is replaced by a blank one, the
tags of which are dropped, because it would fail the model's whole batch.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from nuswide.deployment.batch.decode import MAX_BYTES, as_lossless
from nuswide.deployment.batch.image_list import ImageList, list_images, read_chunks, writable
from nuswide.deployment.batch.parts import REJECTED, SKIPPED, describe_job
from nuswide.deployment.batch.request import ResolvedModel, TagOptions, TagSummary
from nuswide.tagger import Preprocessing, preprocessing_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_PACKAGE = Path(__file__).resolve().parents[2]
_TABLE = "table:"
_NO_IMAGE = "no image"  # the reason of a file that is skipped
_PER_BATCH = 32  # rows of an Arrow batch; Spark's default of 10,000 images would not fit in memory


def tag_on_spark(
    model: ResolvedModel,
    source: str,
    out: str,
    options: TagOptions,
    master: str | None,
    keep: Sequence[str],
) -> TagSummary:
    """Tag a source's images on Spark into a folder of Parquet, partitioned by the columns `keep`.

    Raises click.ClickException if Spark is not installed or the source cannot be read.
    """
    if not (model.bundle.parent.parent / "MLmodel").is_file():
        raise click.ClickException(
            f"{model.uri} is not an MLflow model, which Spark needs; give models:/NAME@ALIAS or "
            "the folder that contains MLmodel"
        )
    out = _new_folder(out)
    with _session(master) as spark, tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        # Executors fetch the code when they start, so the archive must stay until the end.
        archive = shutil.make_archive(f"{scratch}/nuswide", "zip", _PACKAGE.parent, _PACKAGE.name)
        spark.sparkContext.addPyFile(archive)
        images, listing = _read(spark, source, Path(scratch), keep)
        rows = _tagged(
            spark, images, model, keep, skips="://" in source and not _is_table(source)
        ).persist()
        count, rejected, skipped, digest = _count(rows)
        if not count:
            raise click.ClickException(f"{source} contains no images")
        listing = listing or ImageList(Path(), "table", count, digest, digest)
        about = describe_job(model, source, listing, options)
        _write(rows, out, about, model, options, keep)
        rows.unpersist()
        seconds = time.perf_counter() - start
    place = out.removeprefix("file://")
    return TagSummary(
        place, count, rejected, f"{place}/{REJECTED}", skipped, f"{place}/{SKIPPED}", count, seconds
    )


def _new_folder(out: str) -> str:
    """Return the address of a folder; raises click.ClickException if a local one exists."""
    if "://" in out:
        return out
    out = os.path.abspath(out)
    if os.path.exists(out):
        raise click.ClickException(f"{out} already exists; remove it or choose another --out")
    return f"file://{out}"


@contextmanager
def _session(master: str | None) -> "Iterator[SparkSession]":
    """Start Spark; a local one listens on the loopback only.

    Raises click.ClickException if something is missing, and for errors of Spark.
    """
    try:
        from py4j.protocol import Py4JError
        from pyspark import SparkConf
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise click.ClickException(
            f"pyspark is missing ({error}); pip install 'pyspark>=4.1,<5'"
        ) from error
    if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
        raise click.ClickException("Spark needs Java 17 or later; install it or set JAVA_HOME")
    master = master or SparkConf().get("spark.master") or "local[*]"
    builder = SparkSession.builder.appName("nuswide tag").master(master)
    # The features of pandas 3 used here are tested: strings, bytes, and lists of them.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    settings = {"spark.sql.execution.arrow.maxRecordsPerBatch": str(_PER_BATCH)}
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings |= {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    except (PySparkException, Py4JError) as error:
        raise click.ClickException(f"Spark: {str(error).splitlines()[0]}") from error
    finally:
        spark.stop()


def _read(
    spark: "SparkSession", source: str, scratch: Path, keep: Sequence[str]
) -> "tuple[DataFrame, ImageList | None]":
    """Return a table of path, content, refused and the columns to keep; and the image list, if any.

    content is null where the executors open the path; refused is the reason not to open it, or
    _NO_IMAGE.
    """
    if _is_table(source):
        return _read_table(spark, source, keep), None
    if keep:
        raise click.ClickException(
            f"{source} is not a table; --partition_by takes columns of a table"
        )
    if "://" in source:
        return _read_files(spark, source), None
    return _read_list(spark, source, scratch)


def _is_table(source: str) -> bool:
    return source.startswith(_TABLE) or source.rstrip("/").endswith(".parquet")


def _read_table(spark: "SparkSession", source: str, keep: Sequence[str]) -> "DataFrame":
    """Read a table of Spark or a Parquet file, with or without a column content."""
    from pyspark.sql import functions as F

    name = source.removeprefix(_TABLE)
    table = spark.table(name) if name != source else spark.read.parquet(source)
    missing = [name for name in ("path", *keep) if name not in table.columns]
    if missing:
        raise click.ClickException(
            f"{source} has no column {missing[0]}; it has {', '.join(table.columns)}"
        )
    table = table.withColumn("refused", F.lit(None).cast("string"))
    if "content" not in table.columns:
        table = table.withColumn("content", F.lit(None).cast("binary"))
    return table.select("path", "content", "refused", *keep)


def _read_list(spark: "SparkSession", source: str, scratch: Path) -> "tuple[DataFrame, ImageList]":
    """List the images of a local source; the executors open their paths."""
    from pyspark.sql import functions as F

    skipped = scratch / "skipped.csv"
    listing = list_images(source, scratch / "images", skipped)
    tables = [
        pa.table({"path": list(map(writable, paths))}).append_column(
            "refused", pa.nulls(len(paths), pa.string())
        )
        for _, paths in read_chunks(listing.file, 10_000)
    ]
    if listing.skipped:
        parsing = pa.csv.ParseOptions(newlines_in_values=True)
        others = pa.csv.read_csv(skipped, parse_options=parsing)
        tables.append(others.append_column("refused", pa.array([_NO_IMAGE] * len(others))))
    paths = spark.createDataFrame(pa.concat_tables(tables))
    paths = paths.repartition(4 * spark.sparkContext.defaultParallelism)
    content = F.when(F.col("refused").isNotNull(), F.lit(b""))
    return paths.withColumn("content", content), listing


def _read_files(spark: "SparkSession", folder: str) -> "DataFrame":
    """Return the files below a folder as Spark's binaryFile source; huge files are not read."""
    from pyspark.sql import functions as F

    files = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(folder)
    path = F.regexp_replace("path", "^file:/+", "/").alias("path")
    is_huge = F.col("length") > MAX_BYTES
    why = F.concat(F.col("length").cast("string"), F.lit(f" bytes are above {MAX_BYTES}"))
    small = files.where(~is_huge).select(path, "content", F.lit(None).alias("refused"))
    huge = files.where(is_huge).select(path, F.lit(b"").alias("content"), why.alias("refused"))
    return small.unionByName(huge)


def _tagged(
    spark: "SparkSession",
    images: "DataFrame",
    model: ResolvedModel,
    keep: Sequence[str],
    *,
    skips: bool,
) -> "DataFrame":
    """Return path, the columns to keep, reason (of rejected images), and all labels and scores.

    skips: whether the images are files of a folder, of which those that are no images get the
    reason _NO_IMAGE.
    """
    from pyspark.sql import functions as F

    settings = json.loads((model.bundle / "tagger.json").read_text("utf-8"))
    decoder = _decoder(preprocessing_of(settings), skips=skips)
    tagger = mlflow.pyfunc.spark_udf(
        spark,
        str(model.bundle.parent.parent),
        result_type="labels array<string>, scores array<double>",
        env_manager="local",
        params={"threshold": 0.0},
    )
    blank = F.lit(as_lossless(np.zeros((3, 8, 8), np.uint8)))
    decoded = images.select("path", "refused", *keep, decoder("path", "content").alias("decoded"))
    image = F.coalesce("decoded.image", blank).alias("image")
    reason = F.coalesce("refused", "decoded.reason").alias("reason")
    scored = decoded.select("path", *keep, reason, tagger(F.struct(image)).alias("t"))
    scores = F.col("t.scores").cast("array<float>").alias("scores")
    return scored.select("path", *keep, "reason", F.col("t.labels").alias("labels"), scores)


def _decoder(preprocessing: Preprocessing, *, skips: bool) -> Any:
    """Return the function of Spark from path and content to an image, or the reason why not."""
    from pyspark.sql import functions as F

    def decode(path: pd.Series, content: pd.Series) -> pd.DataFrame:
        # Runs on the executors, to which this package is sent; nested, so that it is pickled whole.
        from nuswide.deployment.batch.decode import as_lossless, decode_file, is_image

        rows: list[tuple[str | None, str | None]] = []
        for name, data in zip(path, content, strict=True):
            if skips and not is_image(name, bytes(data)):
                rows.append((None, _NO_IMAGE))
                continue
            found = decode_file(name if data is None else bytes(data), preprocessing)
            rows.append((None, found) if isinstance(found, str) else (as_lossless(found), None))
        return pd.DataFrame(rows, columns=["image", "reason"], dtype=object)

    # The stubs lack functions that map several columns to several columns.
    udf: Any = F.pandas_udf(decode, "image string, reason string")  # type: ignore[call-overload]
    return udf.asNondeterministic()


def _count(rows: "DataFrame") -> tuple[int, int, int, str]:
    """Tag all; return how many are images, rejected and skipped, and a digest of the paths."""
    from pyspark.sql import functions as F

    skipped = F.coalesce(F.col("reason") == _NO_IMAGE, F.lit(False))
    digest = F.bit_xor(F.when(~skipped, F.xxhash64("path")))
    found = rows.agg(
        F.count_if(~skipped), F.count("reason"), F.count_if(skipped), F.coalesce(digest, F.lit(0))
    ).first()
    assert found is not None
    return found[0], found[1] - found[2], found[2], f"{found[3] % 2**64:016x}"


def _write(
    rows: "DataFrame",
    out: str,
    about: dict[str, Any],
    model: ResolvedModel,
    options: TagOptions,
    keep: Sequence[str],
) -> None:
    from pyspark.sql import functions as F

    labels, scores = _selected(model, options)
    columns: list[Column | str] = [
        "path", *keep,
        labels.alias("labels", metadata={"nuswide": json.dumps(about, ensure_ascii=False)}),
        scores.alias("scores"),
    ]  # fmt: skip
    if options.all_scores:
        by_label = F.map_from_arrays("labels", "scores")
        columns.append(F.array(*(by_label[label] for label in model.labels)).alias("all_scores"))
    tagged = rows.where(F.col("reason").isNull()).select(*columns)
    tagged.write.partitionBy(*keep).parquet(out)
    rejected = rows.where(F.col("reason") != _NO_IMAGE).select("path", "reason")
    skipped = rows.where(F.col("reason") == _NO_IMAGE).select("path")
    for table, name in ((rejected, REJECTED), (skipped, SKIPPED)):
        table.coalesce(1).write.option("header", True).option("escape", '"').csv(f"{out}/{name}")


def _selected(model: ResolvedModel, options: TagOptions) -> "tuple[Column, Column]":
    """Select the labels and scores that reach their thresholds, best first."""
    from pyspark.sql import functions as F

    limits = F.map_from_arrays(
        F.array(*map(F.lit, model.labels)),
        F.array(*(F.lit(float(t)).cast("float") for t in model.thresholds)),
    )
    pairs = F.filter(
        F.arrays_zip("labels", "scores"), lambda pair: pair["scores"] >= limits[pair["labels"]]
    )
    if options.top_k:
        pairs = F.slice(pairs, 1, options.top_k)
    return pairs["labels"], pairs["scores"]
