"""The Spark engine of `nuswide tag`, on a local Spark."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Registered
from PIL import Image

from nuswide.deployment.batch import spark
from nuswide.deployment.batch.job import tag
from nuswide.deployment.batch.request import TagSummary

pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(
        not shutil.which("java"), reason="needs Java 17 or later for Spark; .ci/run installs it"
    ),
]
ODD = ("with space.jpg", "ümläut.JPG", "50%25.jpg", "[1]{2}.jpg", "a+b&c.jpg", "_DSC1.jpe")


@pytest.fixture(autouse=True)
def tracking(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mlflow.set_tracking_uri(registered.workspace.env["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Drawn scenes under unusual names in a folder of an unusual name, and three invalid files."""
    folder = tmp_path_factory.mktemp("spark") / "a {b} [c]"
    (folder / "below").mkdir(parents=True)
    sources = sorted((tiny_data / "images").iterdir())
    for i, name in enumerate((*ODD, *(f"{i}.jpg" for i in range(4)))):
        shutil.copy(sources[i], folder / ("below" if i % 2 else "") / name)
    (folder / "cut.jpg").write_bytes(sources[0].read_bytes()[:600])
    (folder / "below" / "no.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture, which its name does not claim either")
    return folder


def on_spark(registered: Registered, source: Path | str, out: Path, **options: Any) -> TagSummary:
    return tag(registered.uri, str(source), str(out), engine="spark", master="local[2]", **options)


def sorted_tags(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values("path", ignore_index=True)


def assert_same_tags(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert list(one.columns) == list(other.columns)
    assert one["path"].tolist() == other["path"].tolist()
    for column in one.columns.drop("path"):
        for a, b in zip(one[column], other[column], strict=True):
            if column == "labels":
                assert list(a) == list(b)
            else:
                np.testing.assert_allclose(a, b, atol=1e-5)


def rejected(out: Path, name: str = "_rejected.csv") -> pd.DataFrame:
    found = out / name
    files = [found] if found.is_file() else sorted(found.glob("part-*.csv"))
    return pd.concat(map(pd.read_csv, files)).sort_values("path", ignore_index=True)


def test_both_engines_give_the_same_and_bad_pictures_fail_no_job(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    options = {"all_scores": True, "threshold": 0.45, "top_k": 4}
    ours = tag(registered.uri, str(photos), str(tmp_path / "here"), workers=1, **options)
    theirs = on_spark(registered, photos, tmp_path / "there", **options)
    counts = [(done.images, done.rejected, done.skipped) for done in (ours, theirs)]
    assert counts == [(12, 2, 1)] * 2
    here, there = sorted_tags(tmp_path / "here"), sorted_tags(tmp_path / "there")
    assert_same_tags(here, there)
    assert len(here) == 10 and here["labels"].map(len).max() <= 4
    lists = [rejected(tmp_path / name) for name in ("here", "there")]
    assert lists[0]["path"].tolist() == lists[1]["path"].tolist()
    assert lists[1]["reason"].str.startswith("not a readable picture").all()
    for name in ("here", "there"):
        assert rejected(tmp_path / name, "_skipped.csv")["path"].tolist() == [
            str(photos / "notes.txt")
        ]
    # The schema describes the tagging.
    (part, *_) = (tmp_path / "there").glob("part-*.parquet")
    row = json.loads(pq.read_schema(part).metadata[b"org.apache.spark.sql.parquet.row.metadata"])
    (labels,) = (field for field in row["fields"] if field["name"] == "labels")
    about = json.loads(labels["metadata"]["nuswide"])
    local = json.loads((tmp_path / "here" / "_tagging.json").read_text())
    assert about == local


def test_a_partitioned_table_is_read_and_written(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    paths = sorted(path for path in photos.rglob("*") if path.suffix != ".txt" and path.is_file())
    table = pa.table({
        "path": [path.name for path in paths] + ["nothing"],
        "content": pa.array([path.read_bytes() for path in paths] + [None], pa.binary()),
        "day": [f"2024-0{1 + i % 3}" for i in range(len(paths))] + ["2024-01"],
        "unused": [1] * (len(paths) + 1),
    })  # fmt: skip
    pq.write_to_dataset(table, tmp_path / "photos.parquet", partition_cols=["day"])
    out = tmp_path / "tags.parquet"
    summary = on_spark(registered, tmp_path / "photos.parquet", out, partition_by="day")
    assert (summary.images, summary.rejected) == (13, 3)
    assert {p.name for p in out.glob("day=*")} == {"day=2024-01", "day=2024-02", "day=2024-03"}
    tags = sorted_tags(out)
    day = dict(zip(table["path"].to_pylist(), table["day"].to_pylist(), strict=True))
    assert tags["day"].tolist() == [day[path] for path in tags["path"]]
    reasons = dict(rejected(out).itertuples(index=False))
    assert "No such file" in reasons["nothing"]
    tag(registered.uri, str(photos), str(tmp_path / "here"), workers=1)
    here = sorted_tags(tmp_path / "here")
    here["path"] = here["path"].map(os.path.basename)
    assert_same_tags(here.sort_values("path", ignore_index=True), tags.drop(columns="day"))


def test_a_list_of_paths_is_opened_where_the_work_is(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / ODD[0]}\nmissing.jpg\n")
    summary = on_spark(registered, tmp_path / "list.txt", tmp_path / "out")
    assert (summary.images, summary.rejected) == (2, 1)
    assert sorted_tags(tmp_path / "out")["path"].tolist() == [str(photos / ODD[0])]
    with pytest.raises(click.ClickException, match="already exists"):
        on_spark(registered, tmp_path / "list.txt", tmp_path / "out")


def test_a_file_above_the_limit_is_rejected_unread(
    registered: Registered, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "MAX_BYTES", 50_000)
    (tmp_path / "two").mkdir()
    shutil.copy(photos / ODD[0], tmp_path / "two" / "small.jfif")
    (tmp_path / "two" / "notes.txt").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "two" / "large.png")
    summary = on_spark(registered, f"file://{tmp_path}/two", tmp_path / "out")
    assert (summary.images, summary.rejected, summary.skipped) == (2, 1, 1)
    assert sorted_tags(tmp_path / "out")["path"].tolist() == [f"{tmp_path}/two/small.jfif"]
    (skipped,) = rejected(tmp_path / "out", "_skipped.csv")["path"]
    assert skipped == f"{tmp_path}/two/notes.txt"
    (entry,) = rejected(tmp_path / "out").itertuples(index=False)
    assert entry.path.endswith("large.png") and entry.reason.endswith("bytes are above 50000")


def test_spark_udf_takes_base64_and_bytes_and_keeps_lists(
    registered: Registered, tiny_data: Path
) -> None:
    from pyspark.sql import functions as F

    paths = sorted((tiny_data / "images").iterdir())[:3]
    given = pd.DataFrame({"image": [path.read_bytes() for path in paths]})
    loaded = mlflow.pyfunc.load_model(str(registered.folder))
    expected = loaded.predict(given, params={"top_k": 2})
    types = "labels array<string>, scores array<double>", "labels array<string>"
    with spark._session("local[1]") as session:
        tag, labels_alone = (
            mlflow.pyfunc.spark_udf(session, str(registered.folder), kind, "local", {"top_k": 2})
            for kind in types
        )
        table = session.createDataFrame(given)
        text = F.base64("image")  # in lines of 76 characters
        rows = table.select(
            tag("image").alias("bytes"), tag(text).alias("base64"),
            labels_alone(text).alias("labels"), text.alias("text"),
        ).collect()  # fmt: skip
    assert "\n" in rows[0].text
    for row, (labels, scores) in zip(rows, expected.itertuples(index=False), strict=True):
        assert row.bytes.labels == row.base64.labels == row.labels.labels == labels
        assert row.bytes.scores == row.base64.scores == pytest.approx(scores)


def test_what_spark_cannot_do_is_one_clear_error(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(click.ClickException, match="not an MLflow model"):
        tag(str(registered.bundle), str(photos), str(out), engine="spark")
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "t.parquet")
    for source, words, options in (
        (photos, "is not a table", {"partition_by": "day"}),
        (tmp_path / "t.parquet", "has no column path; it has name", {}),
        ("file:///nowhere/at/all", "Spark: ", {}),
        ("table:none", "Spark: ", {}),
    ):
        with pytest.raises(click.ClickException, match=words) as caught:
            on_spark(registered, source, out, **options)
        assert "\n" not in caught.value.message
    assert not out.exists()
