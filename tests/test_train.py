from dataclasses import replace

import click
import numpy as np
import pytest
import torch

from nuswide.config import Config
from nuswide.data import Dataset
from nuswide.manifest import Manifest
from nuswide.metrics import NINE
from nuswide.models import create_model
from nuswide.train import Best, State, choose_device, fit

LABELS = ("red", "green", "blue")
CONFIG = Config(
    backbone="resnet18", image_size_px=32, epochs=2, batch_size=8, lr=1e-3, val_fraction=0.2
)


class Recorder:
    """Takes what a Run takes, and keeps it."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, int]] = []

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        self.metrics += [(key, value, step) for key, value in metrics.items()]

    def log_image(self, figure: object, key: str, *, step: int) -> None:
        self.images.append((key, step))

    def flush(self) -> None:
        pass

    def steps(self, key: str) -> list[int]:
        return [step for name, _, step in self.metrics if name == key]


@pytest.fixture(scope="module")
def data() -> Dataset:
    """40 train, 8 val and 8 test images whose channels are bright where the label is."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (56, 3)).astype(np.uint8)
    noise = rng.integers(0, 60, (56, 3, 32, 32))
    images = (noise + 150 * targets[:, :, None, None]).astype(np.uint8)
    splits = np.array(["train"] * 40 + ["val"] * 8 + ["test"] * 8)
    names = tuple(f"{i}.png" for i in range(56))
    return Dataset(Manifest(".", names, LABELS, targets, splits), images, np.arange(56))


def train(data: Dataset, **changes: object) -> tuple[Best, State, Recorder]:
    config = Config(**{**vars(CONFIG), **changes})
    recorder = Recorder()
    best, state = fit(config, create_model(config, n_labels=3), data, recorder)
    return best, state, recorder


def test_training_learns_what_can_be_seen(data: Dataset) -> None:
    best, _, recorder = train(data, epochs=8)
    losses = [value for key, value, _ in recorder.metrics if key == "train/loss"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert best.map > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(data: Dataset) -> None:
    first, second, other = (train(data, seed=seed)[0].weights for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_step_is_recorded_once_with_ten_figures(data: Dataset) -> None:
    _, state, recorder = train(data)
    assert state.steps == 2 * (40 // 8)
    for key in ("loss", *NINE):
        assert recorder.steps(f"train/{key}") == list(range(state.steps))


def test_val_is_evaluated_after_each_epoch(data: Dataset) -> None:
    _, _, recorder = train(data)
    assert recorder.steps("val/map") == [5, 10]
    assert recorder.steps("test/map") == []


def test_the_weights_with_the_best_val_map_are_kept(data: Dataset) -> None:
    best, _, recorder = train(data, epochs=4)
    maps = {step: value for key, value, step in recorder.metrics if key == "val/map"}
    assert best.map == max(maps.values())
    assert best.steps == min(step for step, value in maps.items() if value == best.map)
    assert recorder.images[-1] == ("val/predictions", best.steps)


def test_test_is_evaluated_at_test_freq_and_chooses_where_asked(data: Dataset) -> None:
    splits = np.where(data.manifest.splits == "val", "test", data.manifest.splits)
    without_val = replace(data, manifest=replace(data.manifest, splits=splits))
    best, _, recorder = train(without_val, test_freq=4, select_on="test", val_fraction=0.0)
    assert recorder.steps("test/map") == [0, 4, 8]
    assert recorder.steps("val/map") == []
    assert best.steps in (0, 4, 8)


def test_the_last_weights_are_kept_where_nothing_chooses(data: Dataset) -> None:
    best, state, _ = train(data, select_on="last", val_fraction=0.0)
    assert best.steps == state.steps
    now = state.model.state_dict()
    assert all(torch.equal(best.weights[name], now[name].cpu()) for name in now)


def test_the_kept_weights_do_not_change_with_further_training(data: Dataset) -> None:
    best, state, _ = train(data, epochs=1)
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    name = next(iter(best.weights))
    assert not torch.equal(best.weights[name], state.model.state_dict()[name])


def test_a_loss_that_is_not_finite_stops_and_names_the_step(data: Dataset) -> None:
    with pytest.raises(click.ClickException, match=r"nan|inf.* at step \d+; give a lower lr"):
        train(data, lr=1e30, epochs=8)


def test_a_missing_gpu_is_an_error_and_auto_takes_what_is_there() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(click.ClickException, match="device=auto"):
            choose_device("cuda")
