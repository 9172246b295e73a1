"""Evaluation, serving and both batch engines give the same scores, to 1e-5, and the same labels."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import REAL, Registered, needs_real, register_untrained
from numpy.typing import NDArray
from PIL import Image

from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.deployment.batch.job import tag
from nuswide.evaluation.evaluate import predict
from nuswide.tagger import Tagger
from nuswide.tracking.registry import find_version, load_tagger

pytestmark = pytest.mark.slow

_AT_ONCE = 32  # images in a request


@contextmanager
def mlflow_serving(registered: Registered) -> Iterator[str]:
    """Start `mlflow models serve`, wait until it responds, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", registered.uri]
    process = subprocess.Popen(
        [*command, "--env-manager", "local", "-p", str(port)],
        cwd=registered.workspace.folder, env=registered.workspace.env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


Rows = list[tuple[list[str], NDArray[np.floating]]]  # labels, and the scores of all labels


def served_rows(url: str, paths: list[Path], labels: list[str]) -> Rows:
    rows = []
    for start in range(0, len(paths), _AT_ONCE):
        images = [base64.b64encode(p.read_bytes()).decode() for p in paths[start:][:_AT_ONCE]]
        body = {"inputs": {"image": images}, "params": {"all_scores": True, "top_k": 1}}
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            for found in json.load(answer)["predictions"]:
                scores = np.array([found["all_scores"][label] for label in labels], np.float32)
                rows.append((found["labels"], scores))
    return rows


def batch_rows(out: Path, paths: list[Path]) -> Rows:
    table = pd.read_parquet(out).set_index("path")
    assert sorted(table.index) == sorted(map(str, paths))
    ordered = table.loc[list(map(str, paths))]
    return [(list(a), b) for a, b in zip(ordered["labels"], ordered["all_scores"], strict=True)]


def assert_top_1(rows: Rows, tagger: Tagger) -> None:
    """Each image has the best of the labels that reach their thresholds, if there is one."""
    thresholds = tagger.thresholds.astype(np.float32)
    for labels, scores in rows:
        passing = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= thresholds[i]]
        assert labels == [tagger.labels[i] for i in passing[:1]]


@pytest.mark.parametrize(
    "name",
    [
        "drawn",
        pytest.param("coco128", marks=needs_real("coco128")),
    ],
)
def test_served_spark_local_and_evaluated_scores_and_labels_are_equal(
    name: str, registered: Registered, tiny_data: Path, tmp_path: Path
) -> None:
    source = tiny_data if name == "drawn" else REAL / name
    rows, tagger = assert_equal_scores(registered, source, tmp_path)
    assert len(rows) == (126 if name == "coco128" else 48)
    # The best label fails where another passes, or the order of the two rules would not matter.
    assert any(labels and labels != [tagger.labels[s.argmax()]] for labels, s in rows)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_scores_are_equal_however_images_are_fitted_and_normalized(
    fit: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(4)]
    for name, size in zip(names, ((40, 60), (90, 33), (200, 20), (32, 32)), strict=True):
        path = tmp_path / "data" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    rows = "".join(f"{name},sky;sea,test\n" for name in names)
    (tmp_path / "data" / "labels.csv").write_text("image,labels,split\n" + rows)
    (tmp_path / "model").mkdir()
    registered = register_untrained(
        tmp_path / "model", fit=fit, interpolation="bicubic", mean="0.5,0.4,0.3", std="0.2,0.3,0.4"
    )
    assert_equal_scores(registered, tmp_path / "data", tmp_path)


def assert_equal_scores(
    registered: Registered, source: Path, tmp_path: Path
) -> tuple[Rows, Tagger]:
    """Score the images of a data set by each engine; return the served rows and the model."""
    mlflow.set_tracking_uri(registered.workspace.env["MLFLOW_TRACKING_URI"])
    try:
        tagger = load_tagger(find_version(registered.uri))
        data: Dataset = open_dataset(
            load_manifest(str(source)), tagger.preprocessing, folder=tmp_path / "cache"
        )
        paths = [data.manifest.root / image for image in data.manifest.names]
        evaluated = predict(tagger.score, data)
        options = {"all_scores": True, "top_k": 1}
        tag(registered.uri, str(source), str(tmp_path / "here"), **options)
        found = {"local": batch_rows(tmp_path / "here", paths)}
        if shutil.which("java"):
            tag(registered.uri, str(paths[0].parent), str(tmp_path / "there"),
                engine="spark", master="local[2]", **options)  # fmt: skip
            found["spark"] = batch_rows(tmp_path / "there", paths)
        with mlflow_serving(registered) as url:
            found["served"] = served_rows(url, paths, tagger.labels)
    finally:
        mlflow.set_tracking_uri(None)
    for engine, rows in found.items():
        assert_top_1(rows, tagger)
        scores = np.stack([scores for _, scores in rows])
        np.testing.assert_allclose(scores, evaluated, rtol=0, atol=1e-5, err_msg=engine)
        print(f"{source.name}, {engine}: {np.abs(scores - evaluated).max():.1e}")
    return found["served"], tagger
