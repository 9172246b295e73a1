import copy
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import numpy as np
import onnx
import pytest
import torch
from conftest import TINY, Workspace
from mlflow.entities import Run
from torch import nn

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels
from nuswide.deployment import export
from nuswide.deployment.export import log_bundle, write_bundle, write_weights
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.metrics import Calibration
from nuswide.models.backbones import BACKBONES
from nuswide.models.heads import HEADS
from nuswide.models.networks import TaggerNet, create_model
from nuswide.tagger import Preprocessing, Tagger
from nuswide.tracking.reader import WEIGHTS_TAG, file_digest
from nuswide.tracking.registry import find_version

pytestmark = pytest.mark.slow

SETTINGS = {"labels": ["a", "b", "c"], "image_size_px": 32, "config": {}}
DECISION = Decision(np.array([0.4, 0.5, 0.6], dtype=np.float32))
TRAIN = TrainLabels(
    ("a", "b", "c"), np.random.default_rng(0).integers(0, 2, (9, 3)).astype(np.uint8), None
)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> TaggerNet:
    return create_model(Config(backbone="resnet18", image_size_px=32), n_labels=3)


@pytest.fixture(scope="module")
def bundle(model: TaggerNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's bundle, which no test changes."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    write_bundle(folder, model, SETTINGS, DECISION, IMAGES)
    return folder


@pytest.fixture
def exported_before(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have write_bundle take the network from that bundle instead of exporting it again."""

    def copy_network(model: TaggerNet, path: Path, image_size_px: int) -> None:
        shutil.copy(bundle / "model.onnx", path)

    monkeypatch.setattr(export, "_export_onnx", copy_network)


def test_a_bundle_scores_any_number_of_images_as_torch_does(model: TaggerNet, bundle: Path) -> None:
    tagger = Tagger.load(bundle)
    assert (tagger.labels, tagger.preprocessing) == (["a", "b", "c"], Preprocessing(32))
    assert (tagger.thresholds == DECISION.thresholds).all()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    with torch.inference_mode():
        logits = model.eval()((torch.from_numpy(IMAGES) / 255 - mean) / std)
    for n in (1, 2, 5):
        np.testing.assert_allclose(tagger.score(IMAGES[:n]), logits.sigmoid()[:n], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_bundle_with_test_flips_scores_both_ways_round_as_torch_does(
    head: str, tmp_path: Path
) -> None:
    config = Config(backbone="resnet18", image_size_px=32, head=head)
    taggers = []
    for flips in (False, True):
        model = create_model(replace(config, test_flips=flips), n_labels=3, train=TRAIN)
        write_bundle(tmp_path / f"{flips}", model, SETTINGS, DECISION, IMAGES)
        taggers.append(Tagger.load(tmp_path / f"{flips}"))
    plain, both = taggers
    score = torch_score(model, torch.device("cpu"))
    mirrored = np.ascontiguousarray(IMAGES[..., ::-1])
    for n in (1, 2, 5):
        served = both.score(IMAGES[:n])
        np.testing.assert_allclose(served, score(IMAGES[:n]), atol=1e-5)
        mean = (plain.score(IMAGES[:n]) + plain.score(mirrored[:n])) / 2
        np.testing.assert_allclose(served, mean, atol=1e-5)
        assert np.abs(served - plain.score(IMAGES[:n])).max() > 1e-4
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("False", "True")]
    assert sizes[1] < 1.01 * sizes[0]  # the network is stored once


def test_a_bundle_is_one_network_file_and_one_text_file(bundle: Path) -> None:
    assert sorted(p.name for p in bundle.iterdir()) == ["model.onnx", "tagger.json"]
    onnx.checker.check_model(bundle / "model.onnx")


@pytest.mark.usefixtures("exported_before")
def test_a_bundle_calibrates_as_its_evaluation_did(
    model: TaggerNet, bundle: Path, tmp_path: Path
) -> None:
    calibration = Calibration(np.array([2.0, 1.0, 0.5]), np.array([-1.0, 0.0, 3.0]))
    decision = Decision(DECISION.thresholds, calibration)
    write_bundle(tmp_path / "bundle", model, SETTINGS, decision, IMAGES)
    raw = Tagger.load(bundle).score(IMAGES)
    calibrated = Tagger.load(tmp_path / "bundle").score(IMAGES)
    np.testing.assert_allclose(calibrated, decision.calibrate(raw), atol=1e-6)
    assert np.abs(calibrated - raw)[:, [0, 2]].min() > 0.01


def test_joined_groups_compute_what_the_narrow_ones_did() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(
        nn.Conv2d(
            16, 32, 3, groups=8, padding=1, bias=False
        ),  # 2 input channels a group, 4 output channels
        nn.Conv2d(32, 32, 3, groups=8, stride=2),
        nn.Conv2d(32, 64, (1, 3), groups=2),  # wide enough
        nn.Conv2d(64, 64, 3, groups=64),  # depthwise
        nn.Conv2d(64, 24, 1, groups=8, dilation=2),  # 8 input channels a group, 3 output channels
        nn.Conv2d(24, 24, 1, groups=4),  # 6 do not divide 16
        nn.Conv2d(24, 24, 1),
    )
    wide = export._widen_groups(copy.deepcopy(narrow))
    images = torch.randn(2, 16, 16, 16)
    torch.testing.assert_close(wide(images), narrow(images), atol=1e-6, rtol=1e-5)
    assert [conv.groups for conv in wide] == [1, 2, 2, 64, 4, 4, 1]
    assert [conv.groups for conv in narrow] == [8, 8, 2, 64, 8, 4, 1]


def test_resnext_is_exported_with_wide_groups_and_trains_on_with_narrow_ones(
    tmp_path: Path,
) -> None:
    model = create_model(Config(backbone="resnext50_32x4d", image_size_px=32), n_labels=3)
    score = torch_score(model, torch.device("cpu"))(IMAGES)
    write_bundle(tmp_path / "bundle", model, SETTINGS, DECISION, IMAGES)
    np.testing.assert_allclose(Tagger.load(tmp_path / "bundle").score(IMAGES), score, atol=1e-5)
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    widths = [weights[node.input[1]][1] for node in graph.node if node.op_type == "Conv"]
    assert len(widths) == 53
    assert sorted(set(widths)) == [3, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert model.state_dict()["backbone.layer1.0.conv2.weight"].shape == (128, 4, 3, 3)


# The others are exported above.
@pytest.mark.parametrize(
    ("backbone", "head"),
    list(zip(sorted(BACKBONES.keys() - {"resnet18", "resnext50_32x4d"}), itertools.cycle(HEADS))),
)
def test_every_backbone_is_exported(backbone: str, head: str, tmp_path: Path) -> None:
    config = Config(backbone=backbone, head=head, image_size_px=64)
    model = create_model(config, n_labels=3, train=TRAIN)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    score = torch_score(model, torch.device("cpu"))
    write_bundle(tmp_path / "bundle", model, {**SETTINGS, "image_size_px": 64}, DECISION, images)
    tagger = Tagger.load(tmp_path / "bundle")
    for n in (1, 3):
        np.testing.assert_allclose(tagger.score(images[:n]), score(images[:n]), atol=1e-5)


@pytest.mark.usefixtures("exported_before")
def test_an_export_whose_scores_differ_is_refused(
    model: TaggerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_a_little(self: Tagger, images: np.ndarray) -> np.ndarray:
        return self.session.run(["scores"], {"images": images})[0] + np.float32(2e-4)

    monkeypatch.setattr(Tagger, "score", off_by_a_little)
    with pytest.raises(click.ClickException, match="differ from torch's by 2.0e-04"):
        write_bundle(tmp_path / "bundle", model, SETTINGS, DECISION, IMAGES)


def test_written_weights_start_another_model(model: TaggerNet, tmp_path: Path) -> None:
    digest = write_weights(tmp_path / "w.safetensors", model, ["a", "b", "c"])
    assert digest == file_digest(tmp_path / "w.safetensors")
    stated = {"mean": "0.5,0.5,0.5", "std": "0.2,0.2,0.2"}
    files = [write_weights(tmp_path / f"{i}", model, ["a"], stated) for i in range(9)]
    assert len(set(files)) == 1  # the digest is known again after a resumed run
    config = Config(backbone="resnet18", weights=str(tmp_path / "w.safetensors"), seed=9)
    again = create_model(config, n_labels=3).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_the_served_model_asks_for_few_packages() -> None:
    assert set(export._REQUIREMENTS) == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}


def test_a_version_that_was_cut_off_before_its_description_gets_it_on_resuming(
    bundle: Path, tmp_path: Path
) -> None:
    card = "What it is.\n\n## Labels\n\nsky"
    with Workspace(tmp_path).tracked("export"):
        client = mlflow.MlflowClient()
        with mlflow.start_run() as run:
            arguments = (bundle, IMAGES[0], "cut", run.info.run_id, card, "digest")
            version = log_bundle(*arguments).version
            assert client.get_model_version("cut", str(version)).description == "What it is."
            for before, after in (("", "What it is."), ("Champion: 1", "Champion: 1")):
                client.update_model_version("cut", str(version), before)
                assert log_bundle(*arguments).version == version
                assert client.get_model_version("cut", str(version)).description == after


def test_a_run_registers_one_version_of_its_weights_however_often_it_is_resumed(
    bundle: Path, tmp_path: Path
) -> None:
    name = "o'brien"  # a quote would end a text in a filter
    with Workspace(tmp_path).tracked("export"):
        client = mlflow.MlflowClient()
        with mlflow.start_run() as run:
            arguments = (bundle, IMAGES[0], name, run.info.run_id, "A card.")
            first = log_bundle(*arguments, "one").version
        assert mlflow.get_run(run.info.run_id).info.end_time  # which it keeps when it is resumed
        with mlflow.start_run(run_id=run.info.run_id):
            assert log_bundle(*arguments, "one").version == first  # stopped before it was tagged
            client.set_model_version_tag(name, str(first), WEIGHTS_TAG, "one")
            assert log_bundle(*arguments, "one").version == first
            second = log_bundle(*arguments, "two").version  # trained further
            client.set_model_version_tag(name, str(second), WEIGHTS_TAG, "two")
        with mlflow.start_run(run_id=run.info.run_id):
            assert log_bundle(*arguments, "two").version == second != first
        assert len(client.get_registered_model(name).latest_versions) == 1
        assert str(find_version(f"models:/{name}/latest").version) == second


# Networks that cannot be exported


def test_attention_of_timm_is_exported_in_single_steps(tmp_path: Path) -> None:
    config = Config(backbone="timm/test_maxvit", image_size_px=64)
    model = create_model(config, n_labels=3)
    assert any(getattr(module, "fused_attn", False) for module in model.modules())
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    write_bundle(tmp_path / "bundle", model, SETTINGS | {"image_size_px": 64}, DECISION, images)
    assert any(getattr(module, "fused_attn", False) for module in model.modules())


def runs_of(workspace: Workspace) -> list[Run]:
    client = mlflow.MlflowClient(workspace.env["MLFLOW_TRACKING_URI"])
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def refuse(*args: object, **kwargs: object) -> None:
    """Fail as the exporter does: pages of text, with the reason in the cause."""
    try:
        raise ValueError("Cannot view a tensor\nOriginal traceback:\n ...")
    except ValueError as error:
        raise RuntimeError("Failed to decompose the graph.\nThis is step 2/3\n...") from error


def test_a_network_that_cannot_be_exported_is_found_before_its_training(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setattr("torch.onnx.export", refuse)
    options = TINY | {"backbone": "timm/test_resnet", "epochs": "1", "data": str(tiny_data)}
    command = ["train", *(text for k, v in options.items() for text in (f"--{k}", v))]
    failed = workspace.in_process(*command, check=False)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
    assert line == (
        "Error: backbone=timm/test_resnet: the network cannot be exported to ONNX (Cannot view a "
        "tensor); choose another backbone, or train without registering it: registered_model=none"
    )
    assert not runs_of(workspace)

    trained = workspace.in_process(*command, "--registered_model", "none")
    assert "only the weights are logged: the network cannot be exported to ONNX" in trained.stderr
    (run,) = runs_of(workspace)
    assert run.info.status == "FINISHED" and "test/map" in run.data.metrics


@pytest.mark.parametrize(
    "fields", [{"registered_model": "none"}, {"resume": "0123"}, {"backbone": "resnet18"}]
)
def test_the_export_is_tried_only_where_it_may_fail(
    model: TaggerNet, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx.export", refuse)
    export.require_exportable(model, Config(**{"backbone": "timm/test_resnet", **fields}))
    with pytest.raises(export.ExportError, match="backbone=timm/test_resnet"):
        export.require_exportable(model, Config(backbone="timm/test_resnet", image_size_px=32))
