"""Every loss with every head on two backbones, trained and served; and what training never sees.

A loss changes weights, never the network, and most of an export's time goes into its graph. So that
each combination's weights are scored by ONNX Runtime without a hundred exports, a network is
exported once. Its graph, taken before the optimization that merges weights, has each weight under
its own name, and each loss's are put there. The bundle has the graph after it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, TINY, Workspace
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import InferenceSession
from safetensors.torch import load_file
from test_loop import Recorder
from torch.onnx import ONNXProgram

from nuswide.config import Config
from nuswide.data.dataset import Dataset, load_manifest
from nuswide.data.label_stats import TrainLabels, label_vectors
from nuswide.data.manifest import Manifest
from nuswide.data.splits import carve_val
from nuswide.deployment.export import write_bundle, write_weights
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.models import backbones
from nuswide.models.heads import HEADS
from nuswide.models.losses import LOSSES
from nuswide.models.networks import Scorer, TaggerNet, create_model
from nuswide.models.preprocessing import resolve_preprocessing
from nuswide.tagger import Tagger
from nuswide.training.checkpoint import LAST, CheckpointWriter, load
from nuswide.training.loop import fit
from nuswide.training.step import State

pytestmark = pytest.mark.slow

LABELS = ("sky", "clouds", "sea", "rock", "nothing")
BACKBONES = ("timm/test_resnet", "mobilenet_v3_small")  # small ones of either library
SIDE = 32
CONFIG = Config(
    image_size_px=SIDE, epochs=2, batch_size=8, lr=1e-2, select_on="last", splc_from_epoch=0
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """8 images for one step an epoch, 4 of val and 4 of test; some entries are unknown."""
    rng = np.random.default_rng(0)
    targets = (rng.random((16, 5)) < [0.6, 0.5, 0.4, 0.3, 0]).astype(np.uint8)
    known = rng.random((16, 5)) < 0.9
    splits = np.array(["train"] * 8 + ["val"] * 4 + ["test"] * 4)
    names = tuple(f"{i}.png" for i in range(16))
    images = rng.integers(0, 256, (16, 3, SIDE, SIDE), dtype=np.uint8)
    manifest = Manifest(Path(), names, LABELS, targets * known, splits, known)
    return Dataset(manifest, images, np.arange(16))


def build(config: Config, data: Dataset) -> TaggerNet:
    return create_model(config, n_labels=len(LABELS), train=TrainLabels.of(data.manifest))


class Unwritten(CheckpointWriter):
    """Keeps the last state in memory, where a disk would take longer than the training."""

    state: dict[str, Any]

    def save(self, state: dict[str, Any], then: Callable[[], None]) -> None:
        self.state = state


def train(config: Config, data: Dataset, resumed: dict[str, Any] | None = None) -> State:
    with Unwritten(Path(LAST)) as writer:
        _, state = fit(config, build(config, data), data, Recorder(), writer, resumed)
    return state


def score(model: TaggerNet, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return torch_score(model.eval(), torch.device("cpu"))(images)


class Exported:
    """The bundle of a trained network, and its graph before it was optimized."""

    def __init__(self, config: Config, data: Dataset, folder: Path) -> None:
        self.config = config
        self.start = build(config, data)
        self.trained = train(config, data).model
        settings = {"labels": LABELS, "image_size_px": SIDE, "config": {}}
        decision = Decision(np.full(len(LABELS), 0.5, dtype=np.float32))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.onnx, "export", partial(self._export, torch.onnx.export))
            write_bundle(folder / "bundle", self.trained, settings, decision, data.images)
        self.tagger = Tagger.load(folder / "bundle")
        self.places = {tensor.name: tensor for tensor in self.file.graph.initializer}

    def _export(
        self, export: Callable[..., ONNXProgram], model: Scorer, args: Any, path: Path,
        external_data: bool, **options: Any,
    ) -> None:  # fmt: skip
        """Export, optimize and save a network as torch.onnx.export does, one after the other."""
        program = export(model, args, optimize=False, **options)
        self.file = onnx.load_from_string(program.model_proto.SerializeToString())
        program.optimize()
        program.save(path, external_data=external_data)

    def score(self, model: TaggerNet, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score images with the weights of another model of the same kind."""
        for name, value in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                tensor = numpy_helper.from_array(value.numpy(), f"model.{name}")
                self.places[tensor.name].CopyFrom(tensor)
        session = InferenceSession(
            self.file.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        scores: NDArray[np.float32] = session.run(["scores"], {"images": images})[0]
        return scores


PAIRS = [(backbone, head) for backbone in BACKBONES for head in HEADS]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def exported(
    request: pytest.FixtureRequest, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    backbone, head = request.param
    loss = list(LOSSES)[PAIRS.index(request.param) % len(LOSSES)]  # so that each has its turn
    config = replace(CONFIG, backbone=backbone, head=head, loss=loss)
    config, _ = resolve_preprocessing(config)
    return Exported(config, data, tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_combination_trains_two_steps_exports_reloads_and_scores_equally(
    exported: Exported, loss: str, data: Dataset, tmp_path: Path
) -> None:
    config = replace(exported.config, loss=loss)
    state = train(config, data)
    assert state.progress.steps == 2
    scores = score(state.model, data.images)
    assert np.isfinite(scores).all()
    assert np.abs(scores - score(exported.start, data.images)).max() > 1e-3
    write_weights(tmp_path / "weights.safetensors", state.model, data.manifest.labels)
    reloaded = build(replace(config, weights=str(tmp_path / "weights.safetensors"), seed=9), data)
    for name, value in state.model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name
    np.testing.assert_allclose(score(reloaded, data.images), scores, atol=1e-5)
    for n in (1, 16):
        served = exported.score(reloaded, data.images[:n])
        np.testing.assert_allclose(served, scores[:n], atol=2e-5)
    (tmp_path / "weights.safetensors").unlink()  # a hundred would fill a small disk


def test_the_served_file_of_a_trained_network_scores_equally(
    exported: Exported, data: Dataset
) -> None:
    for n in (1, 3, 16):
        here = score(exported.trained, data.images[:n])
        np.testing.assert_allclose(exported.tagger.score(data.images[:n]), here, atol=1e-4)


# What training never sees

COUNTING = ["weighted_bce", "class_balanced", "distribution_balanced", "splc"]


def with_other_labels(data: Dataset, split: str) -> Dataset:
    """The same pictures, with every label of a split turned round, and all of them known."""
    manifest = data.manifest
    rows = manifest.indices(split)
    assert manifest.known is not None
    targets, known = manifest.targets.copy(), manifest.known.copy()
    targets[rows], known[rows] = 1 - targets[rows], True
    return replace(data, manifest=replace(manifest, targets=targets, known=known))


@pytest.mark.parametrize("loss", COUNTING)
def test_labels_of_val_and_test_change_nothing_in_training(loss: str, data: Dataset) -> None:
    config = replace(CONFIG, backbone=BACKBONES[0], loss=loss, head="gcn", gcn_vectors="pmi")
    ours = train(config, data)
    for split in ("val", "test"):
        theirs = train(config, with_other_labels(data, split))
        assert all(map(torch.equal, ours.counts, theirs.counts))
        assert torch.equal(ours.model.head.graph, theirs.model.head.graph)
        for name, value in ours.model.state_dict().items():
            assert torch.equal(value, theirs.model.state_dict()[name]), name


def test_labels_of_train_do_change_it(data: Dataset) -> None:
    config = replace(CONFIG, backbone=BACKBONES[0], loss="class_balanced", head="gcn")
    ours, theirs = train(config, data), train(config, with_other_labels(data, "train"))
    assert not any(map(torch.equal, ours.counts, theirs.counts))
    assert not torch.equal(ours.model.head.graph, theirs.model.head.graph)
    assert not torch.equal(ours.model.head.vectors, theirs.model.head.vectors)


def test_a_runs_label_vectors_are_made_without_the_val_split_that_it_carves(
    tiny_data: Path, tmp_path: Path
) -> None:
    options = TINY | {"data": str(tiny_data), "head": "gcn", "registered_model": "none"}
    Workspace(tmp_path).in_process("train", *(x for k, v in options.items() for x in (f"--{k}", v)))
    (weights,) = tmp_path.glob("mlruns/**/weights.safetensors")
    vectors = load_file(weights)["head.vectors"].numpy()
    whole = load_manifest(str(tiny_data))
    carved = carve_val(whole, fraction=Config.val_fraction, seed=Config.seed)
    # Products of vectors, whose own signs are anyone's choice.
    ours, theirs = (label_vectors("pmi", TrainLabels.of(m)) for m in (carved, whole))
    np.testing.assert_allclose(vectors @ vectors.T, ours @ ours.T, atol=1e-4)
    assert np.abs(vectors @ vectors.T - theirs @ theirs.T).max() > 1e-2


# Resuming


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"linear"}))
def test_training_with_any_head_goes_on_as_if_nothing_had_happened(
    head: str, data: Dataset, tmp_path: Path
) -> None:
    # SPLC begins to correct in the second epoch, which is the one that is gone on with.
    config = replace(
        CONFIG, backbone=BACKBONES[0], head=head, loss="splc", splc_from_epoch=1, epochs=3,
        splc_threshold=0.3, gcn_vectors="learned", ema_epochs=1.0,
    )  # fmt: skip
    whole = train(config, data)
    with CheckpointWriter(tmp_path / LAST) as writer:
        once = replace(config, epochs=1)
        fit(once, build(config, data), data, Recorder(), writer)
    resumed = train(config, data, load(tmp_path / LAST))
    assert resumed.progress.steps == whole.progress.steps == 3
    for name, value in whole.evaluated.state_dict().items():
        assert torch.equal(resumed.evaluated.state_dict()[name], value), name
    uncorrected = train(replace(config, splc_from_epoch=9), data)
    assert not all(
        torch.equal(v, uncorrected.model.state_dict()[k])
        for k, v in whole.model.state_dict().items()
    )


@pytest.mark.parametrize("registry", [LOSSES, HEADS, backbones.BACKBONES])
def test_the_docs_name_every_choice(registry: dict[str, Any]) -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert [name for name in registry if f"`{name}`" not in page] == []
