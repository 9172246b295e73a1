"""Training of a head on a frozen backbone's feature maps, which are computed once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import Keeper, Recorder

from nuswide.config import Config
from nuswide.data.dataset import Dataset, load_manifest
from nuswide.evaluation.evaluate import predict, torch_score
from nuswide.models.networks import create_model
from nuswide.models.preprocessing import resolve_preprocessing
from nuswide.training.checkpoint import LAST, CheckpointWriter, load
from nuswide.training.features import with_features
from nuswide.training.loop import fit
from nuswide.training.starting_point import open_data
from nuswide.training.step import Best, State

pytestmark = pytest.mark.slow

STILL: dict[str, Any] = {
    "hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0,
}  # fmt: skip


def configure(data: Path, cache: Path, **changes: Any) -> Config:
    fields = {
        "backbone": "resnet18", "image_size_px": 32, "epochs": 2, "batch_size": 8, "lr": 1e-2,
        "freeze": "backbone", "data": str(data), "cache": str(cache), "checkpoint_minutes": 1e-9,
        **STILL, **changes,
    }  # fmt: skip
    return resolve_preprocessing(Config(**fields))[0]


def open_both(config: Config) -> tuple[Dataset, Any]:
    data = open_data(config, load_manifest(config.data))
    model = create_model(config, n_labels=len(data.manifest.labels))
    return with_features(config, model, data), model


def train(
    config: Config, writer: CheckpointWriter, resumed: dict[str, Any] | None = None
) -> tuple[Recorder, Best, State, Dataset]:
    recorder = Recorder()
    data, model = open_both(config)
    with writer:
        best, state = fit(config, model, data, recorder, writer, resumed)
    return recorder, best, state, data


@pytest.mark.parametrize("head", ["linear", "csra"])
def test_a_head_on_maps_learns_what_it_learns_behind_the_frozen_backbone(
    tiny_data: Path, tmp_path: Path, head: str
) -> None:
    config = configure(tiny_data, tmp_path / "cache", head=head, ema_epochs=1.0)
    maps, on_maps, state, data = train(config, CheckpointWriter(tmp_path / "a.pt"))
    assert data.features is not None and state.map_shape == (512, 1, 1)
    slow = replace(config, cache_features=False)
    images, on_images, _, plain = train(slow, CheckpointWriter(tmp_path / "b.pt"))
    assert plain.features is None
    for name, value in on_images.weights.items():
        torch.testing.assert_close(on_maps.weights[name], value, rtol=1e-4, atol=1e-5)
    assert [(key, step) for key, _, step in maps.metrics] == [
        (key, step) for key, _, step in images.metrics
    ]
    model = create_model(config, n_labels=len(data.manifest.labels))
    model.load_state_dict(on_maps.weights)
    score, test = torch_score(model, torch.device("cpu")), data.of("test")
    of_images = predict(score, replace(test, features=None))
    np.testing.assert_allclose(predict(score, test), of_images, rtol=0, atol=1e-5)


def test_training_on_maps_goes_on_from_any_step_bit_for_bit(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = configure(tiny_data, tmp_path / "cache", schedule="one_cycle")
    whole, best, state, _ = train(config, Keeper(tmp_path / LAST))
    for number in Keeper.kept:
        saved = load(tmp_path / f"{number}.pt")
        rest, again, resumed, _ = train(config, CheckpointWriter(tmp_path / "again.pt"), saved)
        then = state.model.state_dict()
        assert all(torch.equal(v, then[k]) for k, v in resumed.model.state_dict().items())
        assert all(torch.equal(again.weights[k], v) for k, v in best.weights.items())
        assert whole.metrics[: saved["mark"]] + rest.metrics == whole.metrics


def test_a_resumed_run_has_the_maps_of_its_own_backbone(tiny_data: Path, tmp_path: Path) -> None:
    config = configure(tiny_data, tmp_path / "cache")
    data, own = open_both(config)
    changed = create_model(replace(config, seed=1), n_labels=len(data.manifest.labels))
    plain = replace(data, features=None)
    maps = with_features(config, changed, plain, {"model": own.state_dict()}).features
    assert np.array_equal(maps, data.features)


def test_maps_belong_to_weights_and_preprocessing(tiny_data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for changes in ({}, {"seed": 1}, {"mean": "0.5,0.5,0.5"}, {"fit": "crop"}, {"head": "csra"}):
        open_both(configure(tiny_data, cache, **changes))
    assert len(list(cache.glob("*-features-*"))) == 4  # the head is not part of it


@pytest.mark.parametrize("changes", [{"hflip": 0.5}, {"mixup": 0.2}, {"test_flips": True}])
def test_images_that_change_are_seen_by_the_backbone_in_every_epoch(
    tiny_data: Path, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = open_both(configure(tiny_data, tmp_path / "cache", **changes))
    assert data.features is None
    said = capsys.readouterr().out
    assert f"because images change by {next(iter(changes))};" in said


def test_a_backbone_that_is_trained_has_no_maps(tiny_data: Path, tmp_path: Path) -> None:
    data, _ = open_both(configure(tiny_data, tmp_path / "cache", freeze="none"))
    assert data.features is None
