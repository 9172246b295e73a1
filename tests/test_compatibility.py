"""What version 0.1.0 left behind is evaluated, compared, resumed, served and quantized.

`earlier_runs.tar.xz` holds what its commit e4de61b made of 40 drawn images (`tiny/`) and a network
whose convolutions have two values each, so that it compresses (`start.safetensors`):

    nuswide train --data tiny --backbone timm/test_efficientnet --weights start.safetensors \\
        --image_size_px 32 --batch_size 8 --lr 1e-2 --head_epochs 9 --epochs 1
    nuswide train (the same) --epochs 2 --registered_model none

It has the folders `mlruns/`, `data/checkpoints/` (of the first run) and `tiny/`, without plots and
pages, and the tracking database as SQL. `FOLDER` stands for the path of the working folder.
"""

import json
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import click
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import Workspace
from deployment.test_serve_limits import JPEG, as_text, ask
from safetensors.torch import load_file

from nuswide.cli import main
from nuswide.config import IMAGENET_MEAN, Config
from nuswide.deployment.serve.server import WorkerConfig
from nuswide.deployment.serve.settings import Settings
from nuswide.metrics import NINE
from nuswide.models.networks import create_model
from nuswide.models.preprocessing import resolve_preprocessing
from nuswide.tracking.registry import fetch_bundle, find_version
from nuswide.tracking.score_file import SavedScores
from nuswide.training.checkpoint import load
from nuswide.training.starting_point import weights_here

pytestmark = pytest.mark.slow

MODEL = "models:/nuswide-tagger@champion"
ONE_EPOCH = "7e040c3bda0349a0ae6a28c046182701"
TWO_EPOCHS = "9714dbb7e20c425ba97d319fb5073ae5"
OPTIONS = {
    "data": "tiny", "backbone": "timm/test_efficientnet", "weights": "start.safetensors",
    "image_size_px": "32", "batch_size": "8", "lr": "1e-2", "head_epochs": "9",
    "registered_model": "none",
}  # fmt: skip
N_LABELS = 26


@dataclass(frozen=True)
class Earlier:
    """The restored working folder; metrics: those of the first run, as recorded."""

    folder: Path
    metrics: dict[str, float]

    def artifact(self, run_id: str, name: str) -> Path:
        return self.folder / "mlruns" / "0" / run_id / "artifacts" / name

    def scores(self) -> SavedScores:
        """What the first run recorded of the test images."""
        return SavedScores.load(self.artifact(ONE_EPOCH, "test/scores.npz"))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Earlier]:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).with_name("earlier_runs.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    for path in (folder / "mlflow.sql", *folder.glob("mlruns/**/MLmodel")):
        path.write_text(path.read_text().replace("FOLDER", str(folder)))
    workspace = Workspace(folder)
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.executescript((folder / "mlflow.sql").read_text())
    workspace.mlflow("db", "upgrade", workspace.env["MLFLOW_TRACKING_URI"])
    with workspace.tracked(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Earlier(folder, mlflow.get_run(ONE_EPOCH).data.metrics)


def nuswide(*arguments: str) -> str:
    """Run a command in this process; returns its output."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def run_id_in(output: str) -> str:
    return re.findall(r"^run ([0-9a-f]{32})\b", output, flags=re.MULTILINE)[-1]


def photos(earlier: Earlier, names: tuple[str, ...]) -> list[bytes]:
    return [(earlier.folder / "tiny" / "images" / name).read_bytes() for name in names]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_registered_model_is_evaluated_to_its_recorded_metrics(
    earlier: Earlier, split: str
) -> None:
    output = nuswide("evaluate", "--model", MODEL, "--data", "tiny", "--split", split)
    metrics = mlflow.get_run(run_id_in(output)).data.metrics
    for name in ("map", *NINE):
        key = f"{split}/{name}"
        assert metrics[key] == pytest.approx(earlier.metrics[key], abs=1e-4), key


def test_weights_of_a_version_are_trained_at_the_size_of_its_bundle(earlier: Earlier) -> None:
    """The pretrained weights of its backbone are for 160 px."""
    start = Config(backbone=OPTIONS["backbone"], weights=MODEL, image_size_px=0)
    with weights_here(start) as local:
        config, source = resolve_preprocessing(local)
    assert (config.image_size_px, config.mean, source) == (32, IMAGENET_MEAN, "the initial weights")
    with (
        pytest.raises(click.UsageError, match="start_size_px=64 is no multiple of 32 up to"),
        weights_here(replace(start, start_size_px=64)),
    ):
        pass


def test_recorded_runs_are_compared(earlier: Earlier) -> None:
    comparison = run_id_in(nuswide("compare", "--runs", f"{ONE_EPOCH},{TWO_EPOCHS}"))
    text = mlflow.artifacts.load_text(f"runs:/{comparison}/comparison.csv")
    table = {line.split(",")[0]: line.split(",")[1:] for line in text.splitlines()}
    assert table["epochs"] == ["1", "2"]
    assert float(table["test/map"][0]) == pytest.approx(earlier.metrics["test/map"], abs=1e-3)


def test_a_registered_model_is_loaded_and_scores_as_recorded(earlier: Earlier) -> None:
    saved = earlier.scores()
    frame = pd.DataFrame({"image": [as_text(photo) for photo in photos(earlier, saved.images)]})
    answers = mlflow.pyfunc.load_model(MODEL).predict(frame, params={"threshold": 0.0})
    for answer, expected in zip(answers.to_dict("records"), saved.scores, strict=True):
        found = dict(zip(answer["labels"], answer["scores"], strict=True))
        assert found == pytest.approx(
            dict(zip(saved.labels, expected.tolist(), strict=True)), abs=1e-4
        )


def test_a_registered_model_is_served(earlier: Earlier) -> None:
    saved, folder = earlier.scores(), Path(mlflow.artifacts.download_artifacts(MODEL))
    app = WorkerConfig(folder, "nuswide-tagger", "1", Settings(), None).app()
    answer = ask(app, JPEG, photos(earlier, saved.images)[0], query="all_scores=true")
    assert answer.status == 200, answer.body
    found = json.loads(answer.body)["predictions"][0]["all_scores"]
    assert found == pytest.approx(
        dict(zip(saved.labels, saved.scores[0].tolist(), strict=True)), abs=1e-4
    )


def test_a_registered_model_is_quantized(earlier: Earlier) -> None:
    nuswide(
        "quantize", "--model", "models:/nuswide-tagger/1", "--most_lost", "0.9", "--images", "8"
    )
    version = find_version("models:/nuswide-tagger/latest")
    assert version.tags["quantized_from"] == "1" and version.tags["precision"] == "int8"
    small, large = (
        (fetch_bundle(v) / "model.onnx").stat().st_size for v in (version, find_version(MODEL))
    )
    assert small < large


def test_a_checkpoint_is_a_file_of_weights_to_start_from(earlier: Earlier) -> None:
    path = earlier.folder / "data" / "checkpoints" / ONE_EPOCH / "last.pt"
    config = Config(backbone=OPTIONS["backbone"], image_size_px=32, weights=str(path))
    assert load(path)["progress"]["steps"] == 3
    model = create_model(config, n_labels=N_LABELS)
    weights = load_file(earlier.artifact(ONE_EPOCH, "weights/weights.safetensors"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_a_run_is_resumed_and_ends_as_one_that_was_not_interrupted(earlier: Earlier) -> None:
    options = OPTIONS | {"epochs": "2", "resume": ONE_EPOCH}
    output = nuswide("train", *(x for k, v in options.items() for x in (f"--{k}", v)))
    assert run_id_in(output) == ONE_EPOCH
    client = mlflow.MlflowClient()
    for key in ("train/loss", "val/map"):
        resumed, whole = (
            {m.step: m.value for m in client.get_metric_history(run_id, key)}
            for run_id in (ONE_EPOCH, TWO_EPOCHS)
        )
        assert set(resumed) >= set(whole)
        for step in whole.keys() & resumed.keys():
            assert resumed[step] == pytest.approx(whole[step], abs=1e-3), (key, step)
    one, other = (
        load_file(earlier.artifact(run_id, "weights/weights.safetensors"))
        for run_id in (ONE_EPOCH, TWO_EPOCHS)
    )
    for name, value in other.items():
        np.testing.assert_allclose(one[name], value, atol=1e-4, err_msg=name)
