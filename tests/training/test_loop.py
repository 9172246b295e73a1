import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.core.signals import Interrupted
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.data.sampling import SAMPLINGS
from nuswide.data.transforms import IMAGENET
from nuswide.metrics import NINE
from nuswide.models.networks import TaggerNet, create_model
from nuswide.training import loop, step
from nuswide.training.checkpoint import LAST, CheckpointWriter, Diverged, load, save
from nuswide.training.loop import _is_better, _Loop, fit
from nuswide.training.step import Best, State, choose_device, choose_precision

pytestmark = pytest.mark.slow

LABELS = ("red", "green", "blue")
CONFIG = Config(
    backbone="resnet18", image_size_px=32, epochs=2, batch_size=8, lr=1e-3, val_fraction=0.2
)


class Recorder:
    """Takes what a Run takes, and keeps it."""

    is_trial = False

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, int]] = []
        self.uploads: list[bool] = []

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        self.metrics += [(key, value, step) for key, value in metrics.items()]

    def log_image(self, figure: object, key: str, *, step: int) -> None:
        self.images.append((key, step))

    def mark(self) -> int:
        return len(self.metrics)

    def commit(self, mark: int, checkpoint: Path | None = None) -> None:
        self.committed = mark
        self.uploads.append(checkpoint is not None)

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


def enlarged(data: Dataset, times: int) -> Dataset:
    return replace(data, images=data.images.repeat(times, axis=2).repeat(times, axis=3))


def train(data: Dataset, **changes: object) -> tuple[Best, State, Recorder]:
    config = Config(**{**vars(CONFIG), **changes})
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(Path(folder) / LAST) as writer:
        best, state = fit(config, create_model(config, n_labels=3), data, recorder, writer)
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
    assert state.progress.steps == 2 * (40 // 8)
    for key in ("loss", *NINE):
        assert recorder.steps(f"train/{key}") == list(range(state.progress.steps))


def test_the_loss_that_is_printed_is_the_mean_of_its_own_epoch(
    data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state, recorder = train(data, epochs=3)
    losses = [value for key, value, _ in recorder.metrics if key == "train/loss"]
    means = [f"loss {np.mean(losses[i : i + 5]):.3f}" for i in (0, 5, 10)]
    said = [line for line in capsys.readouterr().out.splitlines() if "  train" in line]
    assert [line.split("train  ")[1] for line in said] == means
    assert state.progress.loss_sum == 0


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


def without_labels(data: Dataset, split: str) -> Dataset:
    targets = data.manifest.targets.copy()
    targets[data.manifest.splits == split] = 0
    return replace(data, manifest=replace(data.manifest, targets=targets))


def test_an_undefined_map_is_never_the_best_and_the_last_weights_are_kept(
    data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    best, state, recorder = train(without_labels(data, "val"))
    assert best.steps == state.progress.steps == 10 and np.isnan(best.map)
    assert "best so far" not in capsys.readouterr().out and recorder.images == []


@pytest.mark.parametrize(
    ("value", "best", "is_better"),
    [
        (0.1, None, True), (0.2, 0.1, True), (0.1, 0.1, False), (0.1, np.nan, True),
        (np.nan, None, False), (np.nan, 0.1, False), (np.nan, np.nan, False),
    ],
)  # fmt: skip
def test_nan_is_no_better_than_anything_and_anything_is_better_than_nan(
    value: float, best: float | None, is_better: bool
) -> None:
    before = None if best is None else Best({}, 1, best)
    assert _is_better(value, before) is is_better


def test_scores_that_are_not_finite_end_the_training(data: Dataset) -> None:
    with pytest.raises(Diverged, match="the scores of val are no longer numbers after step 1"):
        train(data, lr=1e38, batch_size=40, epochs=1)


def test_test_is_evaluated_at_test_freq_and_chooses_where_asked(data: Dataset) -> None:
    splits = np.where(data.manifest.splits == "val", "test", data.manifest.splits)
    without_val = replace(data, manifest=replace(data.manifest, splits=splits))
    best, _, recorder = train(without_val, test_freq=4, select_on="test", val_fraction=0.0)
    assert recorder.steps("test/map") == [0, 4, 8]
    assert recorder.steps("val/map") == []
    assert best.steps in (1, 5, 9)  # the curve's step 0 is after the first one


def test_the_last_weights_are_kept_where_nothing_chooses(data: Dataset) -> None:
    best, state, _ = train(data, select_on="last", val_fraction=0.0)
    assert best.steps == state.progress.steps
    now = state.model.state_dict()
    assert all(torch.equal(best.weights[name], now[name].cpu()) for name in now)


class Seen(TaggerNet):
    """Keeps what it is asked about: training's images, and the sides of those of evaluations."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.trained.append(images.clone())
        else:
            self.sides.add(images.shape[-1])
        return super().forward(images)


def seen(data: Dataset, **changes: Any) -> Seen:
    config = replace(CONFIG, **changes)
    model = create_model(config, n_labels=3)
    model.__class__ = Seen
    model.trained, model.sides = [], set()
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(Path(folder) / LAST) as writer:
        fit(config, model, data, Recorder(), writer)
    return model


def test_training_images_grow_and_evaluations_are_of_full_size(
    data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seen(enlarged(data, 3), image_size_px=96, start_size_px=32, epochs=4)
    assert [image.shape[-1] for image in model.trained] == [32] * 10 + [64] * 5 + [96] * 5
    assert model.sides == {96}
    said = [line for line in capsys.readouterr().out.splitlines() if "  train" in line]
    assert [line.split("at ")[1] for line in said] == ["32 px", "32 px", "64 px", "96 px"]


def test_an_image_that_comes_again_in_an_epoch_is_augmented_anew(data: Dataset) -> None:
    targets = np.zeros_like(data.manifest.targets)
    targets[7, 1] = targets[44, 1] = 1  # one of train, one of val
    rare = replace(data, manifest=replace(data.manifest, targets=targets))
    model = seen(rare, sampling="class_aware", epochs=1, hflip=0.0)
    images = torch.cat(model.trained)
    assert len(images) == 40
    assert len({image.numpy().tobytes() for image in images}) == 40
    still = {"rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0}
    model = seen(rare, sampling="class_aware", epochs=1, hflip=0.0, **still)
    (only,) = {image.numpy().tobytes() for image in torch.cat(model.trained)}
    expected = IMAGENET(torch.from_numpy(data.images[7:8]))[0]
    assert only == expected.numpy().tobytes()


def test_processes_share_each_step_out_and_neighbours_stay_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = np.arange(48).reshape(3, 16)
    loop = SimpleNamespace(config=replace(CONFIG, batch_size=4, accumulate=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        own = _Loop._own_parts(loop, steps)
        expected = [[first + i for i in range(4)] for step in (0, 16, 32) for first in
                    (step + 8 * rank, step + 8 * rank + 4)]  # fmt: skip
        assert own.tolist() == expected
        assert _Loop._own_parts(loop, steps[3:]).shape == (0, 4)


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS.keys() - {"uniform"}))
def test_labels_of_train_alone_decide_what_is_sampled(data: Dataset, sampling: str) -> None:
    changes = {"sampling": sampling, "repeat_threshold": 0.9, "select_on": "last"}
    ours = train(data, **changes)[0].weights
    assert train(data, sampling="uniform", select_on="last")[1].progress.steps == 10
    for split in ("val", "test", "train"):
        targets = data.manifest.targets.copy()
        rows = data.manifest.indices(split)
        targets[rows] = np.roll(targets[rows], 1, axis=0)  # shares of labels stay
        other = replace(data, manifest=replace(data.manifest, targets=targets))
        best, state, _ = train(other, **changes)
        assert state.progress.steps == 10
        is_same = all(torch.equal(ours[name], best.weights[name]) for name in ours)
        assert is_same == (split != "train")


def test_the_kept_weights_do_not_change_with_further_training(data: Dataset) -> None:
    best, state, _ = train(data, epochs=1)
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    name = next(iter(best.weights))
    assert not torch.equal(best.weights[name], state.model.state_dict()[name])


def test_a_loss_that_is_not_finite_stops_and_names_the_step(data: Dataset) -> None:
    with pytest.raises(click.ClickException, match=r"(nan|inf).* at step \d+, on .*png.*lower lr"):
        train(data, lr=1e30, epochs=8)


class Keeper(CheckpointWriter):
    """Notes the steps of every state that it is given, and keeps a few of the states as files."""

    kept = (2, 4, 5, 9)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.steps: list[int] = []

    def save(self, state: dict[str, Any], then: Callable[[], None]) -> None:
        if len(self.steps) in self.kept:
            save(self.path.with_name(f"{len(self.steps)}.pt"), state)
        self.steps.append(state["progress"]["steps"])
        super().save(state, then)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"optimizer": "adamw", "ema_epochs": 1.0, "schedule": "one_cycle", "mixup": 0.3},
    "by_parts": {"optimizer": "sgd", "accumulate": 2, "batch_size": 4, "clip_norm": 1.0},
    "fine_tuned": {"freeze": "norms", "backbone_lr_scale": 0.5, "layer_decay": 0.8},
    "head_first": {"head_epochs": 1, "schedule": "cosine", "erase": 0.5, "feed": "blocks"},
    "repeated": {
        "sampling": "repeat_factor", "repeat_threshold": 0.9, "auto_augment": "randaugment",
    },
    "growing": {
        "sampling": "class_aware", "auto_augment": "trivialaugment", "cutmix": 1.0,
        "image_size_px": 64, "start_size_px": 32, "test_flips": True, "accumulate": 2,
        "batch_size": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_goes_on_from_any_step_as_if_nothing_had_happened(
    data: Dataset, recipe: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=2, checkpoint_minutes=1e-9, **RECIPES[recipe])
    data = enlarged(data, config.image_size_px // 32)

    def run(
        writer: CheckpointWriter, resumed: dict[str, Any] | None
    ) -> tuple[Recorder, Best, State]:
        recorder = Recorder()
        model = create_model(config, n_labels=3)
        with writer:
            best, state = fit(config, model, data, recorder, writer, resumed)
        return recorder, best, state

    keeper = Keeper(tmp_path / LAST)
    whole, best, state = run(keeper, None)
    assert keeper.steps == [1, 2, 3, 4, 5, 5, *range(6, 11), 10]
    for number in Keeper.kept:
        saved = load(tmp_path / f"{number}.pt")
        rest, best_again, state_again = run(CheckpointWriter(tmp_path / "again.pt"), saved)
        now, then = state_again.evaluated.state_dict(), state.evaluated.state_dict()
        assert all(torch.equal(now[k], then[k]) for k in then)
        assert all(torch.equal(best_again.weights[k], best.weights[k]) for k in best.weights)
        assert best_again.steps == best.steps
        assert whole.metrics[: saved["mark"]] + rest.metrics == whole.metrics


def test_training_stops_early_and_a_resumed_one_at_the_same_epoch(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a better mAP after epochs 1 and 3 only, and a patience of 2, after epoch 5."""
    config = replace(CONFIG, epochs=9, patience_epochs=2, checkpoint_minutes=1e-9)

    def run(resumed: dict[str, Any] | None, *is_better: bool) -> tuple[Best, State]:
        answers = iter(is_better)
        monkeypatch.setattr(loop, "_is_better", lambda value, best: next(answers))
        model = create_model(config, n_labels=3)
        with Keeper(tmp_path / LAST) as writer:
            best, state = fit(config, model, data, Recorder(), writer, resumed)
        assert next(answers, None) is None
        return best, state

    best, state = run(None, True, False, True, False, False)
    assert (best.steps, state.progress.steps, state.progress.epoch) == (15, 25, 5)
    within, last = load(tmp_path / "9.pt"), load(tmp_path / LAST)
    assert within["progress"]["steps"] == 9  # of the second epoch
    for checkpoint, left in ((within, (False, True, False, False)), (last, ())):
        best_again, state_again = run(checkpoint, *left)
        assert (best_again.steps, state_again.progress.steps) == (15, 25)
        now, then = state_again.model.state_dict(), state.model.state_dict()
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_the_main_process_decides_when_to_stop(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(distributed, "broadcast", lambda value: asked.append(value) or True)
    _, state, _ = train(data)
    assert asked == [False] and state.progress.steps == 0


def test_a_signal_stops_between_two_steps_with_a_checkpoint(data: Dataset, tmp_path: Path) -> None:
    class Alarm(Recorder):
        def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
            super().log_metrics(metrics, step=step)
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    config = replace(CONFIG, epochs=5, checkpoint_minutes=1e-9)
    before = signal.getsignal(signal.SIGTERM)
    recorder = Alarm()
    with pytest.raises(Interrupted), CheckpointWriter(tmp_path / LAST) as writer:
        fit(config, create_model(config, n_labels=3), data, recorder, writer)
    assert signal.getsignal(signal.SIGTERM) is before
    steps = load(tmp_path / LAST)["progress"]["steps"]
    assert steps == 8 and recorder.steps("train/loss") == list(range(8))


def test_an_upload_that_is_due_passes_to_the_checkpoint_that_displaces_it(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now_s))

    class Clocked(Recorder):
        """Asked for its mark before each checkpoint, 400 s after the last."""

        def mark(self) -> int:
            nonlocal now_s
            now_s += 400
            return super().mark()

    class Writer:
        """Never saves the second checkpoint, as if the first took long to write."""

        path = tmp_path / LAST
        given = 0

        def save(self, state: dict[str, Any], then: Callable[[], None]) -> None:
            self.given += 1
            if self.given != 2:
                then()

    recorder = Clocked()
    config = replace(CONFIG, epochs=3, checkpoint_minutes=1e9, upload_minutes=10)
    fit(config, create_model(config, n_labels=3), data, recorder, Writer())
    assert recorder.uploads == [False, True]


def test_the_head_alone_is_trained_first(data: Dataset) -> None:
    start = create_model(CONFIG, n_labels=3).state_dict()
    _, state, _ = train(data, epochs=1, head_epochs=1)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("backbone."), name


def test_a_frozen_backbone_keeps_weights_and_statistics(data: Dataset) -> None:
    start = create_model(CONFIG, n_labels=3).state_dict()
    _, state, _ = train(data, epochs=2, freeze="backbone")
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("backbone."), name


def test_frozen_norms_keep_weights_and_statistics_while_all_else_is_trained(data: Dataset) -> None:
    start = create_model(CONFIG, n_labels=3).state_dict()
    _, state, _ = train(data, epochs=2, freeze="norms")
    for name, value in state.model.state_dict().items():
        is_norm = "bn" in name or "downsample.1." in name
        assert torch.equal(value, start[name]) == is_norm, name


def test_a_layer_learns_at_its_own_rate(data: Dataset) -> None:
    fields = {"epochs": 1, "batch_size": 40, "optimizer": "sgd", "momentum": 0.0, "lr": 1e-3}
    start = create_model(CONFIG, n_labels=3).state_dict()
    _, plain, _ = train(data, **fields)
    _, scaled, _ = train(data, **fields, backbone_lr_scale=0.5, layer_decay=0.8)
    rates = {"head.linear.weight": 1.0, "backbone.layer4.1.conv2.weight": 0.5 * 0.8,
             "backbone.layer4.0.conv1.weight": 0.5 * 0.8**2}  # fmt: skip
    moved, full = scaled.model.state_dict(), plain.model.state_dict()
    for name, rate in rates.items():
        torch.testing.assert_close(
            moved[name] - start[name], rate * (full[name] - start[name]), rtol=0.01, atol=1e-7
        )


def test_two_halves_of_a_step_give_the_gradient_of_the_whole(data: Dataset) -> None:
    # Batch statistics are of half a step, hence a network without them: its head, trained alone.
    still = {
        "head_epochs": 9, "epochs": 1, "dropout": 0.0, "optimizer": "sgd", "momentum": 0.0,
        "lr": 1.0,
    }  # fmt: skip
    _, whole, _ = train(data, **still)
    _, parts, _ = train(data, **still, batch_size=4, accumulate=2)
    theirs = parts.model.head.state_dict()
    for name, value in whole.model.head.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_a_file_of_weights_to_start_from(data: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2)
    with CheckpointWriter(tmp_path / LAST) as writer:
        best, _ = fit(config, create_model(config, n_labels=3), data, Recorder(), writer)
    again = create_model(replace(config, weights=str(tmp_path / LAST)), n_labels=3).state_dict()
    assert all(torch.equal(again[name], value) for name, value in best.weights.items())


def test_clipping_bounds_what_a_step_moves(data: Dataset) -> None:
    start = create_model(CONFIG, n_labels=3).state_dict()
    changes = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "epochs": 1, "batch_size": 40}
    _, state, _ = train(data, **changes, clip_norm=1e-3)
    moved = [v - start[k] for k, v in state.model.named_parameters()]
    assert torch.cat([m.flatten() for m in moved]).norm().item() <= 1.1e-3


def test_the_average_is_evaluated_and_kept_where_there_is_one(data: Dataset) -> None:
    best, state, _ = train(data, ema_epochs=2.0, select_on="last", val_fraction=0.0)
    average = state.ema.model.state_dict()
    assert all(torch.equal(best.weights[k], average[k]) for k in average)
    assert not torch.equal(average["head.linear.weight"], state.model.head.linear.weight)


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is_and_says_so(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    compiled, _, _ = train(data, compile="on")
    assert capsys.readouterr().out.count("does not work here") == 1  # not once an epoch
    plain, _, _ = train(data, compile="off")
    assert all(torch.equal(compiled.weights[k], plain.weights[k]) for k in plain.weights)


def test_a_network_that_cannot_be_captured_is_trained_as_it_is_and_says_so(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _, _ = train(data)  # on a CPU nothing is captured
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(step, "_can_capture", lambda config, state: True)
    captured, _, _ = train(data)
    assert capsys.readouterr().out.count("cuda_graph does not work here") == 1
    assert all(torch.equal(captured.weights[k], plain.weights[k]) for k in plain.weights)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cuda_graph": True}, True),
        ({}, False),
        # A second backward would overwrite the first one's gradients.
        ({"cuda_graph": True, "accumulate": 2}, False),
        ({"cuda_graph": True, "start_size_px": 32, "image_size_px": 64}, False),
    ],
)
def test_a_graph_is_captured_where_one_can_stand_for_every_step(
    changes: dict[str, Any], expected: bool
) -> None:
    config = Config(**{**vars(CONFIG), **changes})
    on = {name: SimpleNamespace(device=torch.device(name)) for name in ("cuda", "cpu")}
    assert step._can_capture(config, on["cuda"]) is expected  # type: ignore[arg-type]
    assert step._can_capture(config, on["cpu"]) is False  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_takes_the_steps_that_launched_kernels_do(data: Dataset) -> None:
    # Two steps of plain SGD: no chaos has set in, and no moment hides a wrong gradient.
    fields = {
        "device": "cuda", "precision": "fp32", "dropout": 0.0, "optimizer": "sgd", "momentum": 0.0,
        "batch_size": 20, "epochs": 1, "lr": 1e-2, "select_on": "last",
    }  # fmt: skip
    graphed, state, _ = train(data, **fields, cuda_graph=True)
    launched, _, _ = train(data, **fields)
    assert isinstance(state.network, step._Captured)
    for name, weights in launched.weights.items():
        assert torch.allclose(graphed.weights[name].float(), weights.float(), atol=1e-3), name


def test_bf16_trains_with_losses_in_float32(data: Dataset) -> None:
    _, state, recorder = train(data, precision="bf16", epochs=1)
    assert state.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    losses = [value for key, value, _ in recorder.metrics if key == "train/loss"]
    assert all(0 < loss < 5 for loss in losses)


def test_a_precision_or_batch_norm_that_needs_a_gpu_says_so(data: Dataset) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(click.ClickException, match="precision=fp16 needs a GPU"):
            train(data, precision="fp16")
        with pytest.raises(click.ClickException, match="sync_batchnorm=true needs GPUs"):
            train(data, sync_batchnorm=True)


def test_a_missing_gpu_is_an_error_and_auto_takes_what_is_there() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(click.ClickException, match="device=auto"):
            choose_device("cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(click.ClickException, match="no Apple GPU; give device=auto or cpu"):
            choose_device("mps")


def test_an_apple_gpu_computes_in_fp32_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = choose_device("mps")
    assert device.type == "mps"
    assert choose_precision("auto", device) == choose_precision("fp32", device) == torch.float32
    for name in ("bf16", "fp16"):
        with pytest.raises(click.ClickException, match=f"precision={name} is not for device=mps"):
            choose_precision(name, device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(click.ClickException, match="without torchrun"):
        choose_device("mps")
