from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, fbeta_score

from nuswide.metrics import (
    CALIBRATIONS,
    THRESHOLDS,
    Calibration,
    all_metrics,
    fit_calibration,
    fit_thresholds,
)
from nuswide.metrics.predictions import Predictions
from nuswide.metrics.thresholds import F1, Goal, per_label

Array = NDArray[Any]


def problem(n: int, c: int, seed: int, *, levels: int = 1000) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, c)) < np.geomspace(0.5, 0.1, c)).astype(np.uint8)
    scores = np.clip(0.3 * targets + 0.7 * rng.random((n, c)), 0, 1)
    return targets, ((scores * levels).round() / levels).astype(np.float32)


def f1_at(target: Array, score: Array, threshold: float) -> float:
    return float(f1_score(target, score >= np.float32(threshold), zero_division=0))


# The scan


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.sampled_from((2, 5, 1000)), st.integers(0, 9999))
def test_no_threshold_has_a_better_f1_than_the_fitted_one(n: int, levels: int, seed: int) -> None:
    targets, scores = problem(n, 1, seed, levels=levels)
    threshold = F1.threshold(Predictions(targets, scores).curves[0])
    best = max(f1_at(targets[:, 0], scores[:, 0], s) for s in scores[:, 0])
    assert f1_at(targets[:, 0], scores[:, 0], threshold) == pytest.approx(best)


def test_the_fitted_threshold_lies_between_two_scores() -> None:
    scores = np.array([[0.9], [0.8], [0.2]], dtype=np.float32)
    targets = np.array([[1], [1], [0]], dtype=np.uint8)
    assert F1.threshold(Predictions(targets, scores).curves[0]) == pytest.approx(0.5)


def test_of_thresholds_with_the_same_f1_the_highest_is_fitted() -> None:
    scores = np.array([[0.9], [0.7], [0.5], [0.3]], dtype=np.float32)
    targets = np.array([[1], [0], [0], [1]], dtype=np.uint8)  # F1 2/3 with one or all predicted
    assert F1.threshold(Predictions(targets, scores).curves[0]) == pytest.approx(0.8)


def test_scores_that_are_neighbours_in_float32_are_told_apart() -> None:
    low = np.float32(0.5)
    scores = np.array([[np.nextafter(low, np.float32(1))], [low]], dtype=np.float32)
    targets = np.array([[1], [0]], dtype=np.uint8)
    assert f1_at(targets, scores, F1.threshold(Predictions(targets, scores).curves[0])) == 1


# The goals


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.sampled_from((2, 5, 1000)), st.integers(0, 9999))
def test_no_threshold_is_better_for_its_goal(n: int, levels: int, seed: int) -> None:
    targets, scores = problem(n, 1, seed, levels=levels)
    target, score = targets[:, 0], scores[:, 0]
    curve = Predictions(targets, scores).curves[0]
    for beta in (0.5, 2.0):
        chosen = Goal(beta).threshold(curve)
        found, *others = (
            fbeta_score(target, score >= np.float32(t), beta=beta, zero_division=0)
            for t in (chosen, *score)
        )
        assert found == pytest.approx(max(others))
    for wanted in (0.5, 0.9):
        chosen = Goal(precision=wanted).threshold(curve)
        hits = {t: int(target[score >= np.float32(t)].sum()) for t in (chosen, *score)}
        right = [t for t in score if hits[t] and target[score >= np.float32(t)].mean() >= wanted]
        assert hits[chosen] == max((hits[t] for t in right), default=0)
        assert not right or target[score >= np.float32(chosen)].mean() >= wanted


def test_a_precision_is_reached_with_the_most_recall_or_the_label_is_not_predicted() -> None:
    """Ranked 1 1 0 1 0, precision is 1, 2/3, 3/4 and 3/5; ranked 0 1, it is 0 and 1/2."""
    scores = np.array(
        [[0.9, 0.9], [0.8, 0.8], [0.7, 0.1], [0.6, 0.1], [0.5, 0.1]], dtype=np.float32
    )
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0], [0, 0]], dtype=np.uint8)
    for precision, expected in ((0.9, (0.75, 1)), (0.75, (0.55, 1)), (0.5, (0.55, 0.45))):
        found = fit_thresholds("label", targets, scores, goal=f"precision:{precision}")
        assert found == pytest.approx(np.array(expected)), precision


def test_the_precision_of_seven_of_ten_is_reached_by_seven_of_ten() -> None:
    """0.7 * 10 is above 7 in floating point."""
    targets = np.array([1] * 7 + [0] * 3, dtype=np.uint8)[:, None]
    scores = np.full((10, 1), 0.5, dtype=np.float32)
    assert fit_thresholds("label", targets, scores, goal="precision:0.7") == pytest.approx([0.25])


def test_a_higher_beta_gives_recall_more_weight_and_f1_is_the_default() -> None:
    targets, scores = problem(300, 4, seed=9)
    low, default, f1, high = (
        fit_thresholds("global", targets, scores, **goal)[0]
        for goal in ({"goal": "f0.5"}, {}, {"goal": "f1"}, {"goal": "f2"})
    )
    assert high < default == f1 < low


# The kinds


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_every_kind_gives_each_label_a_threshold_that_a_model_can_store(kind: str) -> None:
    targets, scores = problem(60, 4, seed=0)
    targets[:, 2] = 0
    known = np.random.default_rng(0).random(targets.shape) < 0.8
    thresholds = fit_thresholds(kind, targets, scores, known, fixed=0.4)
    assert thresholds.shape == (4,) and thresholds.dtype == np.float32
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    assert 0 <= all_metrics(targets, scores, thresholds, known)["macro/f1"] <= 1


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_unknown_entries_do_not_move_a_threshold(kind: str) -> None:
    targets, scores = problem(60, 4, seed=1)
    known = np.random.default_rng(1).random(targets.shape) < 0.7
    for elsewhere in (0.0, 1.0):
        disturbed = np.where(known, scores, np.float32(elsewhere))
        np.testing.assert_array_equal(
            fit_thresholds(kind, targets, disturbed, known),
            fit_thresholds(kind, targets, scores, known),
        )


@pytest.mark.parametrize("goal", ["f1", "f2", "precision:0.9"])
@pytest.mark.parametrize("kind", THRESHOLDS)
def test_without_any_positive_the_fixed_threshold_remains(kind: str, goal: str) -> None:
    zeros = np.zeros((5, 3), dtype=np.uint8)
    thresholds = fit_thresholds(kind, zeros, zeros.astype(np.float32), fixed=0.4, goal=goal)
    assert thresholds == pytest.approx(np.full(3, 0.4))


def test_no_single_threshold_has_a_better_micro_f1_than_the_global_one() -> None:
    targets, scores = problem(80, 4, seed=2, levels=50)
    fitted = fit_thresholds("global", targets, scores)
    assert len(set(fitted)) == 1
    best = max(all_metrics(targets, scores, float(s))["micro/f1"] for s in np.unique(scores))
    assert all_metrics(targets, scores, fitted)["micro/f1"] == pytest.approx(best)


def test_a_label_without_positives_gets_the_global_threshold() -> None:
    targets, scores = problem(80, 3, seed=3)
    targets[:, 1] = 0
    thresholds = fit_thresholds("label", targets, scores)
    assert thresholds[1] == pytest.approx(fit_thresholds("global", targets, scores)[1], rel=1e-6)


def test_the_more_positives_the_nearer_a_threshold_is_to_the_labels_own() -> None:
    """The same ranking many times over has the same two thresholds, and other trust in them."""
    targets, scores = problem(40, 3, seed=4)
    common = logit(fit_thresholds("global", targets, scores).astype(float))
    own = logit(per_label(Predictions(targets, scores), prior=0).astype(float))
    for times in (1, 10):
        repeated = np.tile(targets, (times, 1)), np.tile(scores, (times, 1))
        n = repeated[0].sum(axis=0)
        drawn = logit(per_label(Predictions(*repeated), prior=7).astype(float))
        np.testing.assert_allclose(drawn, (n * own + 7 * common) / (n + 7), rtol=1e-4)


def test_shrinking_helps_on_other_images_where_positives_are_few() -> None:
    gains = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        power, share = rng.uniform(1.2, 3, 12), np.geomspace(0.3, 0.01, 12)

        def draw(
            n: int, rng: Any = rng, power: Array = power, share: Array = share
        ) -> tuple[Array, Array]:
            targets = rng.random((n, 12)) < share
            evidence = power * (targets - 0.5) + rng.normal(size=(n, 12))
            logits = power * evidence + logit(share)
            return targets.astype(np.uint8), expit(logits).astype(np.float32)

        val, others = draw(200), draw(5000)
        shrunk, own = (per_label(Predictions(*val), prior=prior) for prior in (1.0, 0.0))
        f1 = [all_metrics(*others, thresholds)["macro/f1"] for thresholds in (shrunk, own)]
        gains.append(f1[0] - f1[1])
    assert np.mean(gains) > 0


# Calibration


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_every_calibration_keeps_the_ranking_and_gives_scores(kind: str) -> None:
    targets, scores = problem(200, 4, seed=5)
    targets[:, 3] = 0
    scores[:3, 0] = 0, 1, np.float32(1e-30)
    calibration = fit_calibration(kind, targets, scores)
    assert (calibration.scale > 0).all() and calibration.shift.shape == (4,)
    calibrated = calibration.apply(scores)
    assert calibrated.dtype == np.float32 and ((calibrated >= 0) & (calibrated <= 1)).all()
    for before, after in zip(scores.T, calibrated.T, strict=True):
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()
    for label in range(3):
        assert average_precision_score(targets[:, label], calibrated[:, label]) == pytest.approx(
            average_precision_score(targets[:, label], scores[:, label])
        )


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_a_label_that_lacks_positives_or_negatives_keeps_its_scores(kind: str) -> None:
    targets, scores = problem(50, 3, seed=6)
    targets[:, 0], targets[:, 1] = 0, 1
    calibrated = fit_calibration(kind, targets, scores).apply(scores)
    np.testing.assert_allclose(calibrated[:, :2], scores[:, :2], atol=1e-6)


def test_platt_is_the_logistic_regression_on_logits() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((4000, 1)) < 0.3).astype(np.uint8)
    scores = expit(2 * targets + rng.normal(size=(4000, 1)) * 1.5 - 3).astype(np.float32)
    calibration = fit_calibration("platt", targets, scores)
    oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(logit(scores.astype(float)), targets[:, 0])
    # Platt's smoothed targets move a fit to 4,000 images by little.
    assert calibration.scale[0] == pytest.approx(oracle.coef_[0, 0], rel=0.01)
    assert calibration.shift[0] == pytest.approx(oracle.intercept_[0], abs=0.02)


def test_a_known_distortion_is_undone() -> None:
    """Scores sharpened by 2 and moved by 1: both by Platt's, the first alone by a temperature."""
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(20000, 2)) * 1.5 - 1
    targets = (rng.random(honest.shape) < expit(honest)).astype(np.uint8)
    moved = expit(2 * honest + 1).astype(np.float32)
    platt = fit_calibration("platt", targets, moved)
    np.testing.assert_allclose(platt.scale, 0.5, rtol=0.05)
    np.testing.assert_allclose(platt.shift, -0.5, atol=0.05)
    sharpened = expit(2 * honest).astype(np.float32)
    temperature = fit_calibration("temperature", targets, sharpened)
    np.testing.assert_allclose(temperature.scale, 0.5, rtol=0.05)
    assert not temperature.shift.any()
    for calibration, scores in ((platt, moved), (temperature, sharpened)):
        before = all_metrics(targets, scores, 0.5)
        after = all_metrics(targets, calibration.apply(scores), 0.5)
        assert after["calibration_error"] < before["calibration_error"] / 3
        assert after["brier_loss"] < before["brier_loss"]


def test_calibration_looks_at_known_entries_alone() -> None:
    targets, scores = problem(100, 3, seed=7)
    known = np.random.default_rng(2).random(targets.shape) < 0.7
    first = fit_calibration("platt", targets, scores, known)
    second = fit_calibration("platt", targets, np.where(known, scores, np.float32(0.99)), known)
    np.testing.assert_array_equal(first.scale, second.scale)
    np.testing.assert_array_equal(first.shift, second.shift)


def test_perfectly_separated_labels_are_calibrated_to_finite_numbers() -> None:
    targets = np.array([[1], [1], [0], [0]], dtype=np.uint8)
    scores = np.array([[0.9], [0.8], [0.2], [0.1]], dtype=np.float32)
    for kind in CALIBRATIONS:
        calibration = fit_calibration(kind, targets, scores)
        assert np.isfinite(calibration.scale).all() and np.isfinite(calibration.shift).all()


def test_a_calibration_can_travel_as_two_arrays() -> None:
    targets, scores = problem(100, 3, seed=8)
    fitted = fit_calibration("platt", targets, scores)
    again = Calibration(np.array(fitted.scale.tolist()), np.array(fitted.shift.tolist()))
    np.testing.assert_array_equal(again.apply(scores), fitted.apply(scores))
    expected = expit(fitted.scale * logit(scores.astype(float)) + fitted.shift)
    np.testing.assert_allclose(fitted.apply(scores), expected, atol=1e-6)
