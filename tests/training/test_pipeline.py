"""The user's path: `mlflow run`, then evaluate, compare and serve, each a real process."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, Trained, run_id_of
from mlflow.entities import Run
from safetensors.torch import load_file

from nuswide.config import Config
from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.evaluation.evaluate import predict, torch_score
from nuswide.evaluation.model_card import without_labels
from nuswide.metrics import NINE, all_metrics, fit_thresholds
from nuswide.models.networks import create_model
from nuswide.tagger import Preprocessing
from nuswide.tracking.reader import WEIGHTS, WEIGHTS_TAG
from nuswide.tracking.registry import fetch_bundle, find_version, load_tagger
from nuswide.tracking.score_file import SavedScores

pytestmark = pytest.mark.slow

CHAMPION = "models:/nuswide-tagger@champion"


@pytest.fixture(autouse=True)
def tracking(trained: Trained) -> Iterator[None]:
    with trained.workspace.tracked():
        yield


@pytest.fixture
def run(trained: Trained) -> Run:
    return mlflow.MlflowClient().get_run(trained.run_id)


def history(run_id: str, key: str) -> dict[int, float]:
    return {m.step: m.value for m in mlflow.MlflowClient().get_metric_history(run_id, key)}


def artifacts(run_id: str) -> set[str]:
    client, found, folders = mlflow.MlflowClient(), set(), [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            folders += [item.path] * item.is_dir
            found.add(item.path)
    return found


def held_out(trained: Trained) -> Dataset:
    """The run's test images."""
    folder = trained.workspace.folder / "cache"
    manifest = load_manifest(str(trained.data))
    return open_dataset(manifest, Preprocessing(32), folder=folder).of("test")


def test_params_are_recorded_and_those_of_mlflow_run_stay_as_typed(run: Run) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "1e-3"  # mlflow run recorded it before the code began
    assert run.data.params["dropout"] == "0.2"
    assert run.data.params["experiment"] == "experiments/sample.yaml"


def test_every_iteration_has_its_loss_and_nine_figures(run: Run) -> None:
    steps_per_epoch = (40 - round(40 * 0.15)) // 8
    for key in ("loss", *NINE):
        recorded = history(run.info.run_id, f"train/{key}")
        assert sorted(recorded) == list(range(2 * steps_per_epoch)), key


def test_val_has_a_point_an_epoch_and_test_one_at_the_end(run: Run) -> None:
    assert sorted(history(run.info.run_id, "val/map")) == [4, 8, 9]  # the last: the chosen weights'
    assert sorted(history(run.info.run_id, "test/map")) == [0]  # a bar, not a curve
    assert {f"val/{k}" for k in (*NINE, "map")} <= set(run.data.metrics)
    assert {f"test/{k}" for k in (*NINE, "map")} <= set(run.data.metrics)


def test_figures_tables_and_pictures_are_in_the_record(run: Run) -> None:
    found = artifacts(run.info.run_id)
    assert {
        "config.yaml", "data/label_distribution.png", "data/label_distribution.json",
        "test/per_label.json", "val/per_label.json", "test/baselines.json", "test/baselines.png",
        "test/figures.json", "val/figures.json", "test/scores.npz", "val/scores.npz",
        "test/report.html", "test/report/calibration.png", "test/suspects.json",
        "weights/weights.safetensors",
    } <= found  # fmt: skip
    assert any(path.startswith("images/test") and path.endswith(".png") for path in found)


def test_data_sets_are_tied_with_their_digests(run: Run, trained: Trained) -> None:
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert set(inputs) == {"train", "val", "test"}
    samples = held_out(trained).manifest
    assert inputs["test"].digest == samples.digest == run.data.tags["data.test_digest"]
    assert json.loads(inputs["test"].profile) == {"images": 8, "labels": len(samples.labels)}


def test_hardware_speed_commit_and_note_are_in_the_record(run: Run) -> None:
    assert run.data.tags["hardware.cpu"] and int(run.data.tags["hardware.cores"]) >= 1
    assert run.data.metrics["train/images_per_s"] > 0 < run.data.metrics["run/seconds"]
    assert "| baseline top_k, test |" in run.data.tags["mlflow.note.content"]
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:  # the tests also run on a copy without its history
        assert run.data.tags["mlflow.source.git.commit"] == git.stdout.strip()


def test_the_first_version_is_champion_with_its_figures(run: Run) -> None:
    version = mlflow.MlflowClient().get_model_version_by_alias("nuswide-tagger", "champion")
    assert version.run_id == run.info.run_id
    assert float(version.tags["test/map"]) == pytest.approx(run.data.metrics["test/map"], abs=1e-6)
    assert version.tags["val_digest"] == run.data.tags["data.val_digest"]


def test_the_model_carries_its_figures_and_no_pickle(run: Run, trained: Trained) -> None:
    model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    figures = {m.key: m for m in model.metrics}
    assert figures["test/map"].dataset_digest == run.data.tags["data.test_digest"]
    folder = Path(mlflow.artifacts.download_artifacts(CHAMPION))
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert not {f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pth"))}
    assert {"artifacts/bundle/model.onnx", "artifacts/bundle/tagger.json", "tagger.py"} <= files
    assert "torch" not in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_finds_the_figures_of_training_again(
    run: Run, trained: Trained, split: str
) -> None:
    done = trained.workspace.mlflow_run(
        "evaluate", data=str(trained.data), split=split, cache=trained.cache
    )
    again = mlflow.get_run(run_id_of(done))
    for name in ("map", *NINE):
        key = f"{split}/{name}"
        assert again.data.metrics[key] == pytest.approx(run.data.metrics[key], abs=1e-4), key
    assert f"{split}/per_label.json" in artifacts(again.info.run_id)
    model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert again.info.run_id in {m.run_id for m in model.metrics}


def test_scores_of_another_program_are_judged_by_the_same_rules(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    """The run's own scores, brought as a CSV: every figure at the fixed threshold is its own."""
    path = mlflow.artifacts.download_artifacts(run_id=trained.run_id, artifact_path="test")
    saved = SavedScores.load(Path(path) / "scores.npz")
    lines = [",".join(["image", *saved.labels])]
    pairs = zip(saved.images, saved.scores.tolist(), strict=True)
    lines += [",".join([name, *map(repr, scores)]) for name, scores in pairs]
    (tmp_path / "theirs.csv").write_text("\n".join(lines))
    evaluate = ("evaluate", "--data", str(trained.data), "--scores", str(tmp_path / "theirs.csv"))
    again = mlflow.get_run(run_id_of(trained.workspace.in_process(*evaluate)))
    assert again.data.metrics["test/map"] == pytest.approx(run.data.metrics["test/map"])
    table = mlflow.artifacts.load_dict(f"runs:/{trained.run_id}/test/figures.json")
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    for name in NINE:
        at_half = rows[name]["at threshold 0.5"]
        assert again.data.metrics[f"test/{name}"] == pytest.approx(at_half, abs=1e-4), name
    refused = trained.workspace.in_process(*evaluate, "--thresholds", "label", check=False)
    assert refused.returncode == 1 and "has no val split" in refused.stderr


def test_thresholds_fitted_on_val_are_in_the_model_and_behind_the_test_figures(
    run: Run, trained: Trained
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(run_id=trained.run_id, artifact_path="val"))
    val = SavedScores.load(folder / "scores.npz")
    fitted = fit_thresholds("label", val.targets, val.scores)
    served = load_tagger(find_version(CHAMPION)).thresholds
    np.testing.assert_array_equal(served.astype(np.float32), fitted)
    folder = Path(mlflow.artifacts.download_artifacts(run_id=trained.run_id, artifact_path="test"))
    test = SavedScores.load(folder / "scores.npz")
    figures = all_metrics(test.targets, test.scores, fitted)
    assert run.data.metrics["test/macro/f1"] == pytest.approx(figures["macro/f1"])


def test_the_served_network_scores_as_the_trained_one(trained: Trained) -> None:
    data = held_out(trained)
    weights = weights_of(trained.run_id)
    config = Config(backbone="resnet18", image_size_px=32)
    model = create_model(config, n_labels=len(data.manifest.labels))
    model.load_state_dict(load_file(weights))
    torch_scores = predict(torch_score(model, torch.device("cpu")), data)
    onnx_scores = predict(load_tagger(find_version(CHAMPION)).score, data)
    np.testing.assert_allclose(onnx_scores, torch_scores, atol=1e-5)


def test_compare_puts_two_runs_side_by_side(trained: Trained) -> None:
    changed = TINY | {"lr": "1e-5", "seed": "5", "data": str(trained.data)}
    options = [x for k, v in changed.items() for x in (f"--{k}", v)]
    other = run_id_of(trained.workspace.in_process("train", *options))
    digests = {mlflow.get_run(i).data.tags["data.val_digest"] for i in (trained.run_id, other)}
    assert len(digests) == 1  # another seed, but the same val images
    done = trained.workspace.mlflow_run("compare", runs=f"{trained.run_id},{other}")
    comparison = run_id_of(done)
    page = mlflow.artifacts.load_text(f"runs:/{comparison}/comparison.html")
    assert "data:image/png;base64," in page and "http" not in page
    lines = mlflow.artifacts.load_text(f"runs:/{comparison}/comparison.csv").splitlines()
    table = {line.split(",")[0]: line.split(",")[1:] for line in lines}
    assert {"1e-3", "1e-05"} <= set(table["lr"])
    assert "epochs" not in table and all(0 <= float(cell) <= 1 for cell in table["test/map"])
    by_name = trained.workspace.in_process("compare", "--runs", "Default").stdout
    assert "macro/f1" in by_name and "always the same few" in by_name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(trained: Trained, *command: str, port: int) -> Iterator[str]:
    """Start a server, wait until it answers, and end it with its children."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=trained.workspace.folder,
        env=trained.workspace.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/ping", timeout=5)
                break
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.5)
        else:
            raise AssertionError("the server did not answer within 120 s")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def statuses() -> list[str]:
    runs = mlflow.search_runs(experiment_names=["Default"], output_format="list")
    return [run.info.status for run in runs]


def ask(url: str, body: Any) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_served_photo_gets_the_scores_of_evaluate(trained: Trained) -> None:
    port = free_port()
    command = ("mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local", "-p")
    data = held_out(trained)
    manifest = data.manifest
    tagger = load_tagger(find_version(CHAMPION))
    scores = predict(tagger.score, data)
    photos = [
        base64.b64encode((manifest.root / name).read_bytes()).decode() for name in manifest.names
    ]
    with served(trained, *command, str(port), port=port) as url:
        status, text = ask(url, {"inputs": {"image": photos}, "params": {"threshold": 0}})
        assert status == 200, text
        answers = json.loads(text)["predictions"]
        for answer, expected in zip(answers, scores, strict=True):
            assert answer["scores"] == sorted(answer["scores"], reverse=True)
            found = dict(zip(answer["labels"], answer["scores"], strict=True))
            assert list(found) != [] and found == pytest.approx(
                dict(zip(tagger.labels, expected.tolist(), strict=True)), abs=1e-4
            )
        status, text = ask(
            url,
            {"dataframe_split": {"columns": ["image"], "data": [[photos[0]]]},
             "params": {"top_k": 2, "threshold": 0.0}},
        )  # fmt: skip
        assert len(json.loads(text)["predictions"][0]["labels"]) == 2
        for wrong in ("not base64!", base64.b64encode(b"no picture").decode()):
            status, text = ask(url, {"inputs": {"image": [photos[0], wrong]}})
            assert status == 400 and "row 1" in text and photos[0][:60] not in text


def test_the_serve_entry_point_answers_and_its_run_ends(trained: Trained) -> None:
    port = free_port()
    command = ("mlflow", "run", str(ROOT), "-e", "serve", "--env-manager", "local", "-P")
    with served(trained, *command, f"port={port}", port=port) as url:
        photo = base64.b64encode(next((trained.data / "images").iterdir()).read_bytes()).decode()
        status, text = ask(url, {"instances": [{"image": photo}], "params": {"threshold": 0}})
        assert status == 200 and json.loads(text)["predictions"][0]["labels"], text
    assert "RUNNING" not in statuses()


def test_a_mistake_under_mlflow_run_fails_the_run(trained: Trained) -> None:
    for wrong in ({"lrr": "1e-4"}, {"data": "nowhere"}):
        done = trained.workspace.mlflow_run("main", check=False, **wrong)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1 and next(iter(wrong)) in errors[0], done.stderr
        assert statuses()[0] == "FAILED"


def test_the_version_carries_a_card_with_its_figures(run: Run) -> None:
    version = find_version(CHAMPION)
    card = (fetch_bundle(version) / "card.md").read_text()
    assert f"{run.data.metrics['test/map']:.3f}" in card
    assert run.data.tags["data.digest"] in card
    description = mlflow.MlflowClient().get_model_version("nuswide-tagger", "1").description
    assert description.startswith(without_labels(card)[:200])
    assert "Champion: " in description


def test_a_registered_version_is_fine_tuned_from_its_torch_weights(
    run: Run, trained: Trained, tiny_data: Path
) -> None:
    """With a learning rate that changes next to nothing, its figures are those of the start."""
    changed = TINY | {
        "epochs": "1", "lr": "1e-12", "data": str(tiny_data), "weights": CHAMPION,
        "registered_model": "none",
    }  # fmt: skip
    tuned = trained.workspace.mlflow_run("main", cache=trained.cache, **changed)
    config = mlflow.artifacts.load_text(f"runs:/{run_id_of(tuned)}/config.yaml")
    assert "weights: models:/nuswide-tagger/1\n" in config  # the alias may move

    tuned_weights, weights = (load_file(weights_of(i)) for i in (run_id_of(tuned), trained.run_id))
    trainable = [k for k in weights if not k.endswith(("_mean", "_var", "_tracked"))]
    assert all(torch.allclose(tuned_weights[k], weights[k], atol=1e-6) for k in trainable)


def weights_of(run_id: str) -> str:
    return mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=WEIGHTS)


def test_weights_that_the_run_has_no_more_are_refused(trained: Trained) -> None:
    client = mlflow.MlflowClient()
    digest = find_version("models:/nuswide-tagger/1").tags[WEIGHTS_TAG]
    client.set_model_version_tag("nuswide-tagger", "1", WEIGHTS_TAG, "0" * 64)
    try:
        options = [x for k, v in TINY.items() for x in (f"--{k}", v)]
        data = ("--data", str(trained.data), "--weights", "models:/nuswide-tagger/1")
        refused = trained.workspace.in_process("train", *options, *data, check=False)
    finally:
        client.set_model_version_tag("nuswide-tagger", "1", WEIGHTS_TAG, digest)
    assert refused.returncode == 1 and "was trained further" in refused.stderr
    assert "Traceback" not in refused.stderr
