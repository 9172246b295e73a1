from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Registered
from torch import nn

from nuswide.config import Config
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.evaluation.evaluate import Evaluation, fit_decision, predict, summary_line, torch_score
from nuswide.evaluation.summary import choice, unreached
from nuswide.metrics import NINE, Predictions, all_metrics, fit_thresholds
from nuswide.metrics.decisions import precision_recall_f1


class MeanOfChannels(nn.Module):
    """Logits that tell which image they came from; wider spread when training."""

    test_flips = False

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images / 255

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * (3 if self.training else 1)


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 3, 8, 8), dtype=np.uint8)
    targets = rng.integers(0, 2, (150, 3)).astype(np.uint8)
    names = tuple(map(str, range(150)))
    manifest = Manifest(Path("."), names, ("a", "b", "c"), targets, np.array(["test"] * 150))
    return Dataset(manifest, images, np.arange(150))


def test_scores_keep_the_order_of_the_images_across_batches(data: Dataset) -> None:
    score = torch_score(MeanOfChannels(), torch.device("cpu"))
    scores = predict(score, data)
    one_by_one = np.concatenate([score(data.images[i : i + 1]) for i in range(150)])
    np.testing.assert_allclose(scores, one_by_one, atol=1e-6)
    assert scores.shape == (150, 3) and scores.dtype == np.float32


def test_scoring_is_done_in_eval_mode_and_leaves_the_mode_as_it_was(data: Dataset) -> None:
    model = MeanOfChannels()
    for training in (True, False):
        model.train(training)
        scores = torch_score(model, torch.device("cpu"))(data.images)
        assert model.training is training
        np.testing.assert_allclose(
            scores, torch_score(MeanOfChannels().eval(), torch.device("cpu"))(data.images)
        )


def evaluation_of(data: Dataset, thresholds: float | np.ndarray = 0.3) -> Evaluation:
    scores = np.random.default_rng(1).random((150, 3), dtype=np.float32)
    return Evaluation("test", data.manifest, scores, thresholds, np.array([500, 50, 5]))


def test_metrics_are_those_of_the_scores_under_the_splits_name(data: Dataset) -> None:
    evaluation = evaluation_of(data)
    expected = all_metrics(
        data.manifest.targets, evaluation.scores, 0.3, train_positives=np.array([500, 50, 5])
    )
    assert evaluation.metrics == expected
    assert evaluation.prefixed == {f"test/{name}": value for name, value in expected.items()}
    assert set(evaluation.curves) == {f"test/{name}" for name in (*NINE, "map")}
    assert all(evaluation.prefixed[name] == value for name, value in evaluation.curves.items())
    assert f"map {expected['map']:.3f}" in summary_line(evaluation.prefixed, "test")


def test_the_table_has_intervals_around_headline_metrics_and_what_a_half_would_give(
    data: Dataset,
) -> None:
    evaluation = evaluation_of(data)
    table = evaluation.table()
    rows = {name: row for name, *row in zip(*table.values(), strict=True)}
    value, low, high, at_half = rows["macro/f1"]
    assert low < value < high
    assert value == round(evaluation.metrics["macro/f1"], 4)
    half = all_metrics(data.manifest.targets, evaluation.scores, 0.5)
    assert at_half == round(half["macro/f1"], 4) != value
    assert rows["hamming_loss"][1:3] == [None, None]
    assert rows["map"][0] == rows["map"][3]  # no threshold in it


def test_evaluated_scores_say_over_how_many_labels_each_mean_is(
    registered: Registered, tmp_path: Path
) -> None:
    rows = ["0.jpg,a;c,train", "1.jpg,a,test", "2.jpg,b,test"]
    (tmp_path / "data.csv").write_text("\n".join(["image,labels,split", *rows]))
    scores = ["1.jpg,0.9,0.1,0.1", "2.jpg,0.1,0.9,0.1"]
    (tmp_path / "scores.csv").write_text("\n".join(["image,a,b,c", *scores]))
    done = registered.workspace.in_process(
        "evaluate", "--scores", str(tmp_path / "scores.csv"), "--data", str(tmp_path / "data.csv")
    )
    assert "over the 2 of 3 labels that have a positive, macro/f1 over all 3" in done.stdout
    assert "over the 2, it is 1.000 (macro/f1_with_positives)" in done.stdout


def test_nothing_but_val_is_fitted_on_and_auto_fits_where_it_can(data: Dataset) -> None:
    evaluation = evaluation_of(data)
    val, none = data.manifest, data.manifest.take(np.arange(0))
    fitted = fit_decision(Config(), val, evaluation.scores)
    own = fit_thresholds("label", val.targets, evaluation.scores)
    np.testing.assert_array_equal(fitted.thresholds, own)
    assert len(set(own)) == 3
    fixed = fit_decision(Config(threshold=0.3), none, evaluation.scores[:0])
    np.testing.assert_array_equal(fixed.thresholds, np.full(3, 0.3, dtype=np.float32))
    for kind in ("fixed", "global"):
        decision = fit_decision(Config(thresholds=kind), val, evaluation.scores)
        assert len(set(decision.thresholds)) == 1 and decision.calibration is None


def test_weights_that_no_map_chose_are_said_to_be_the_last() -> None:
    all_of_it = {"steps": 9, "epochs": 3}
    config = Config(epochs=3)
    assert "after 4 of 9 steps, chosen by mAP on val" in choice(config, 4, 0.5, **all_of_it)
    assert choice(config, 9, float("nan"), **all_of_it).startswith(
        "The weights are those after the last of 9 steps, as mAP on val is undefined."
    )
    last = replace(config, select_on="last")
    assert "undefined" not in choice(last, 9, float("nan"), **all_of_it)


def test_a_training_that_was_stopped_early_says_so() -> None:
    config = Config(epochs=8, patience_epochs=2)
    assert choice(config, 3, 0.5, steps=9, epochs=3).startswith(
        "Training stopped after 3 of 8 epochs, 2 of them without a better mAP on val. The weights"
    )
    assert "stopped" not in choice(config, 3, 0.5, steps=24, epochs=8)


def test_the_goal_of_thresholds_is_the_configs_and_who_misses_it_is_named(data: Dataset) -> None:
    evaluation, config = evaluation_of(data), Config(threshold_goal="precision:0.75")
    val = data.manifest
    thresholds = fit_decision(config, val, evaluation.scores).thresholds
    own = fit_thresholds("label", val.targets, evaluation.scores, goal="precision:0.75")
    np.testing.assert_array_equal(thresholds, own)
    table = precision_recall_f1(Predictions(val.targets, evaluation.scores, thresholds))
    assert table["micro/precision"] >= 0.75
    said = unreached(config, val.labels, np.array([0.5, 1, 1], dtype=np.float32))
    assert said == (
        "Not predicted, as no threshold on val reaches precision:0.75: 2 of 3 labels, b, c. "
    )
    assert unreached(Config(), val.labels, np.ones(3, dtype=np.float32)) == ""


def test_thresholds_are_fitted_to_calibrated_scores(data: Dataset) -> None:
    scores = evaluation_of(data).scores
    decision = fit_decision(Config(calibration="platt"), data.manifest, scores)
    calibrated = decision.calibrate(scores)
    assert np.abs(calibrated - scores).max() > 0.1
    expected = fit_thresholds("label", data.manifest.targets, calibrated)
    np.testing.assert_array_equal(decision.thresholds, expected)
