"""Quantization of a registered model to a new int8 version."""

from collections.abc import Iterator
from pathlib import Path

import click
import mlflow
import numpy as np
import onnx
import pytest
from conftest import Trained, run_id_of

from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.deployment.quantize import _config_of, _require_same, quantize
from nuswide.tagger import Tagger
from nuswide.tracking.reader import fetch_scores
from nuswide.tracking.registry import fetch_bundle, find_version

pytestmark = pytest.mark.slow

SOURCE = "models:/nuswide-tagger/1"


@pytest.fixture(scope="module")
def quantized(trained: Trained) -> Iterator[tuple[str, str]]:
    """The ID of a run that quantized the trained model, and what it printed.

    Networks that have learnt next to nothing change much for a little noise: nearly any loss is
    allowed here.
    """
    done = trained.workspace.mlflow_run(
        "quantize", model=SOURCE, cache=trained.cache, images="16", most_lost="0.9"
    )
    mlflow.set_tracking_uri(trained.workspace.env["MLFLOW_TRACKING_URI"])
    yield run_id_of(done), done.stdout
    mlflow.set_tracking_uri(None)


@pytest.fixture
def version(quantized: tuple[str, str]) -> mlflow.entities.model_registry.ModelVersion:
    found = mlflow.MlflowClient().search_model_versions("name='nuswide-tagger'")
    return next(v for v in found if v.run_id == quantized[0])


def test_it_is_a_smaller_version_beside_the_champion(
    quantized: tuple[str, str], version: mlflow.entities.model_registry.ModelVersion
) -> None:
    assert version.tags["precision"] == "int8" and version.tags["quantized_from"] == "1"
    assert f"models:/nuswide-tagger/{version.version}" in quantized[1]
    assert find_version("models:/nuswide-tagger@champion").version != version.version
    small, large = (
        (fetch_bundle(v) / "model.onnx").stat().st_size for v in (version, find_version(SOURCE))
    )
    assert small < 0.3 * large


def test_its_body_computes_in_integers(
    version: mlflow.entities.model_registry.ModelVersion,
) -> None:
    graph = onnx.load(fetch_bundle(version) / "model.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        assert made_by[node.input[0]].op_type == "DequantizeLinear"


def test_its_scores_are_near_and_its_figures_are_its_own(
    quantized: tuple[str, str], version: mlflow.entities.model_registry.ModelVersion
) -> None:
    saved, float_scores = (
        fetch_scores(run_id, "test") for run_id in (quantized[0], find_version(SOURCE).run_id)
    )
    assert saved is not None and float_scores is not None
    gap = np.abs(saved.scores - float_scores.scores)
    assert 0 < gap.max() and np.median(gap) < 0.1
    run = mlflow.get_run(quantized[0])
    assert float(version.tags["test/map"]) == pytest.approx(run.data.metrics["test/map"], abs=1e-6)
    tagger = Tagger.load(fetch_bundle(version))
    np.testing.assert_allclose(tagger.thresholds, saved.thresholds, atol=1e-6)
    assert "int8" in (fetch_bundle(version) / "card.md").read_text()


def test_too_great_a_loss_on_val_registers_nothing(
    quantized: tuple[str, str], trained: Trained
) -> None:
    client = mlflow.MlflowClient()
    before = {v.version for v in client.search_model_versions("name='nuswide-tagger'")}
    with pytest.raises(click.ClickException, match="nothing was registered"):
        # Demand an impossible gain, so that the outcome does not depend on noise.
        quantize(SOURCE, data=None, cache=Path(trained.cache), images=16, most_lost=-1.0)
    assert {v.version for v in client.search_model_versions("name='nuswide-tagger'")} == before
    (last,) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
    assert last.info.status == "FAILED" and "int8/val_map_difference" in last.data.metrics


def test_data_that_the_model_was_not_trained_on_is_refused(
    quantized: tuple[str, str], trained: Trained, tmp_path: Path
) -> None:
    refused = trained.workspace.in_process(
        "quantize", "--model", SOURCE, "--data", "sample", "--cache", str(tmp_path), check=False
    )
    assert refused.returncode == 1
    assert "is not what models:/nuswide-tagger/1 was trained on" in refused.stderr


def test_a_val_split_without_labels_is_refused_before_any_work() -> None:
    targets = np.array([[1], [0], [1]], dtype=np.uint8)
    splits = np.array(["train", "val", "test"])
    manifest = Manifest(Path(), ("a", "b", "c"), ("sky",), targets, splits)
    data = Dataset(manifest, np.zeros((3, 3, 8, 8), dtype=np.uint8), np.arange(3))
    with pytest.raises(click.ClickException, match="no val image of here has a label"):
        _require_same(data, manifest.digest, "here", SOURCE)


def test_fields_that_this_package_does_not_know_are_left_out(
    version: mlflow.entities.model_registry.ModelVersion,
) -> None:
    tagger = Tagger.load(fetch_bundle(version))
    known = _config_of(tagger, None)
    tagger.config["a_field_of_another_version"] = 1
    assert _config_of(tagger, None) == known
    assert _config_of(tagger, "elsewhere").data == "elsewhere"
    for name in ("split_seed", "skip_rejected", "test_flips"):
        del tagger.config[name]
    assert _config_of(tagger, None) == known
