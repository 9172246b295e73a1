from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from nuswide.metrics import all_metrics, label_average_precision
from nuswide.metrics.bootstrap import (
    HEADLINE,
    Resampled,
    _halves,
    _Resampler,
    holm,
    mean_of,
    paired,
    paired_labels,
    resample,
)
from nuswide.metrics.predictions import Predictions

Array = NDArray[Any]


def problem(n: int, c: int, seed: int, *, levels: int = 1000) -> tuple[Array, Array]:
    """Targets, rarer and rarer, and scores that know something of them; ties if levels are few."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, c)) < np.geomspace(0.4, 0.05, c)).astype(np.uint8)
    scores = np.clip(0.3 * targets + 0.7 * rng.random((n, c)), 0, 1)
    return targets, ((scores * levels).round() / levels).astype(np.float32)


# Weighted metrics


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from((2, 1000)), st.integers(0, 999))
def test_metrics_of_weighted_images_are_those_of_repeated_images(
    n: int, c: int, levels: int, seed: int
) -> None:
    targets, scores = problem(n, c, seed, levels=levels)
    rng = np.random.default_rng(seed)
    known = rng.random((n, c)) < rng.choice([0.6, 1.0])
    weights = rng.integers(0, 4, (n, 3)).astype(np.int32)
    weights[0] += weights.sum(axis=0) == 0
    metrics, label_ap = _Resampler(Predictions(targets, scores, 0.4, known)).metrics(weights)
    for round_, times in enumerate(weights.T):
        repeated = np.repeat(np.arange(n), times)
        of_these = targets[repeated], scores[repeated], 0.4, known[repeated]
        expected = all_metrics(*of_these)
        assert metrics[round_] == pytest.approx(
            [expected[name] for name in HEADLINE], abs=1e-9, nan_ok=True
        )
        assert label_ap[round_] == pytest.approx(
            label_average_precision(Predictions(*of_these)), abs=1e-9, nan_ok=True
        )


def test_a_ranking_longer_than_a_part_is_walked_from_part_to_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets, scores = problem(200, 4, seed=0)
    weights = _halves(200, 0, range(5))
    whole = _Resampler(Predictions(targets, scores, 0.4)).metrics(weights)
    monkeypatch.setattr("nuswide.metrics.bootstrap._ROWS", 7)
    parts = _Resampler(Predictions(targets, scores, 0.4))
    assert len(parts.pooled.parts) > 10
    for value, expected in zip(parts.metrics(weights), whole, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_metrics_on_all_images_are_the_metrics() -> None:
    targets, scores = problem(100, 5, seed=1)
    resampled = resample(targets, scores, 0.4, rounds=3)
    metrics = all_metrics(targets, scores, 0.4)
    assert resampled.metrics.tolist() == pytest.approx([metrics[name] for name in HEADLINE])
    assert {k: v.value for k, v in resampled.intervals().items()} == pytest.approx(
        {name: metrics[name] for name in HEADLINE}
    )


# Rounds


def test_a_round_is_a_random_half_that_its_number_and_seed_decide() -> None:
    first = _halves(11, 5, range(4))
    assert set(first.ravel()) == {0, 1} and (first.sum(axis=0) == 5).all()
    np.testing.assert_array_equal(_halves(11, 5, range(2, 4)), first[:, 2:])
    assert (_halves(11, 6, range(4)) != first).any()
    assert len({tuple(column) for column in _halves(11, 5, range(40)).T}) > 30


def test_the_rounds_do_not_depend_on_blocks_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores = problem(60, 4, seed=2)
    expected = resample(targets, scores, 0.4, rounds=30)
    monkeypatch.setattr("nuswide.metrics.bootstrap._MOST_ROUNDS", 7)
    monkeypatch.setattr("nuswide.metrics.bootstrap._THREADS", 1)
    again = resample(targets, scores, 0.4, rounds=30)
    np.testing.assert_array_equal(again.rounds, expected.rounds)
    np.testing.assert_array_equal(again.label_rounds, expected.label_rounds)


# Intervals


@pytest.mark.parametrize("n", [5, 7, 400])
def test_the_interval_of_a_mean_over_images_is_the_textbooks(n: int) -> None:
    targets, scores = problem(n, 6, seed=3)
    interval = resample(targets, scores, 0.4, rounds=4000).intervals()["samples/f1"]
    each = [all_metrics(targets[i : i + 1], scores[i : i + 1], 0.4)["samples/f1"] for i in range(n)]
    margin = 1.96 * np.std(each, ddof=1) / np.sqrt(n)
    assert interval.value == pytest.approx(np.mean(each))
    assert interval.high - interval.value == pytest.approx(margin, rel=0.08)
    assert interval.value - interval.low == pytest.approx(margin, rel=0.08)


def test_intervals_narrow_with_the_root_of_the_images() -> None:
    few, many = (
        resample(*problem(n, 6, seed=4), 0.4, rounds=1000).intervals() for n in (250, 4000)
    )
    for name in HEADLINE:
        ratio = (few[name].high - few[name].low) / (many[name].high - many[name].low)
        assert 3 < ratio < 5.5, name


def test_an_interval_reaches_lower_where_few_positives_make_average_precision_too_high() -> None:
    interval = resample(*problem(200, 40, seed=5), 0.4, rounds=1000).intervals()["map"]
    assert interval.value - interval.low > 1.05 * (interval.high - interval.value)
    assert interval.low < interval.value < interval.high


def test_an_interval_ends_where_the_metrics_do() -> None:
    targets, scores = problem(60, 5, seed=5)
    above_nearly_all = float(np.sort(scores[targets > 0])[-2])
    low = resample(targets, scores, above_nearly_all)  # one or two hits
    high = resample(targets, np.where(targets, scores / 2 + 0.5, scores / 2), 0.5)
    assert 0 == low.intervals()["micro/f1"].low < low.intervals()["micro/f1"].value
    assert low.bounds()[HEADLINE.index("micro/f1"), 0] < 0
    assert high.intervals()["map"] == (1, 1, 1)


def test_one_image_has_no_interval() -> None:
    interval = resample(*problem(1, 3, seed=0), 0.4, rounds=10).intervals()["micro/f1"]
    assert np.isnan(interval.low) and np.isnan(interval.high)


# Paired differences


def test_a_set_of_scores_does_not_differ_from_itself() -> None:
    resampled = resample(*problem(200, 4, seed=6), 0.4, rounds=50)
    for difference in (
        *paired(resampled, resampled).values(),
        *paired_labels(resampled, resampled),
    ):
        assert difference == (0, 0, 0, 1)


def test_a_difference_is_the_challengers_figure_less_the_champions() -> None:
    targets, scores = problem(300, 5, seed=7)
    worse = np.clip(0.5 * scores + 0.5 * np.random.default_rng(0).random(scores.shape), 0, 1)
    good, bad = (resample(targets, s.astype(np.float32), 0.4, rounds=300) for s in (scores, worse))
    for name, difference in paired(good, bad).items():
        assert difference.value == pytest.approx(
            good.intervals()[name].value - bad.intervals()[name].value
        )
    found = paired(good, bad)["map"]
    assert found.low > 0 and found.p_value < 0.01
    back = paired(bad, good)["map"]
    assert back[:3] == pytest.approx((-found.value, -found.high, -found.low))
    assert back.p_value == pytest.approx(found.p_value)
    assert [d.value for d in paired_labels(good, bad)] == pytest.approx(
        good.label_ap - bad.label_ap
    )


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    targets, scores = problem(400, 5, seed=8)
    better = np.clip(scores + 0.03 * targets, 0, 1).astype(np.float32)
    a, b = resample(targets, scores, 0.4), resample(targets, better, 0.4)
    assert b.intervals()["map"].low < a.intervals()["map"].high
    assert paired(b, a)["map"].p_value < 0.001


def test_the_p_value_belongs_to_the_interval() -> None:
    targets, scores = problem(200, 5, seed=9)
    other = np.clip(scores + np.random.default_rng(1).normal(0, 0.1, scores.shape), 0, 1)
    a, b = (resample(targets, s.astype(np.float32), 0.4, rounds=200) for s in (scores, other))
    for difference in paired(a, b).values():
        centre = (difference.low + difference.high) / 2
        deviation = (difference.high - difference.low) / 2 / 1.959964
        assert difference.p_value == pytest.approx(2 * norm.sf(abs(centre) / deviation))
        assert (difference.p_value < 0.05) == (difference.low > 0 or difference.high < 0)


def test_a_label_with_hardly_a_positive_has_no_interval() -> None:
    targets, scores = problem(60, 3, seed=10)
    targets[:, 1] = 0
    targets[:2, 1] = 1  # a quarter of the halves has neither
    targets[:, 2] = 0
    a = resample(targets, scores, 0.4, rounds=200)
    b = resample(targets, scores[::-1].copy(), 0.4, rounds=200)
    first, second, third = paired_labels(a, b)
    assert np.isfinite(first).all()
    assert np.isfinite(second.value) and np.isnan(second[1:]).all()
    assert np.isnan(third).all()


@pytest.mark.parametrize("other", [{"rounds": 11}, {"seed": 1}, {"n": 31}])
def test_rounds_of_different_draws_are_not_paired(other: dict[str, int]) -> None:
    a = resample(*problem(30, 3, seed=0), 0.4, rounds=10)
    b = resample(*problem(other.pop("n", 30), 3, seed=0), 0.4, **{"rounds": 10, **other})
    with pytest.raises(ValueError, match="can't be paired"):
        paired(a, b)
    with pytest.raises(ValueError, match="can't be paired"):
        mean_of([a, b])


def test_seeds_are_pooled_by_the_mean_of_their_metrics_in_each_round() -> None:
    targets, scores = problem(50, 3, seed=0)
    seeds = [resample(targets, np.roll(scores, k, axis=0).copy(), 0.4, rounds=20) for k in range(3)]
    pooled = mean_of(seeds)
    assert isinstance(pooled, Resampled) and pooled.draw == seeds[0].draw
    for name in ("metrics", "label_ap", "rounds", "label_rounds"):
        expected = sum(getattr(seed, name) for seed in seeds) / 3
        np.testing.assert_allclose(getattr(pooled, name), expected)


# Many comparisons


def test_holms_correction_by_hand() -> None:
    # sorted .01, .02, .03, .04 times 4, 3, 2, 1, never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holms_correction_does_not_count_what_has_no_p_value() -> None:
    corrected = holm([float("nan"), 0.02, 0.01])
    assert np.isnan(corrected[0]) and corrected[1:] == pytest.approx([0.02, 0.02])
