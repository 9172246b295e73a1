from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nuswide.metrics import all_metrics
from nuswide.metrics.stream import Stream

Array = NDArray[Any]
RANKED = {
    "map", "weighted_map", "micro/ap", "macro/auroc", "micro/auroc",
    "head_map", "medium_map", "tail_map",
}  # fmt: skip
TRAIN = np.array([500, 60, 5, 0])
THRESHOLDS = np.array([0.2, 0.3, 0.4, 0.5])


def problem(n: int, seed: int, *, known_share: float = 1.0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    known = rng.random((n, 4)) < known_share
    targets = (rng.random((n, 4)) < [0.5, 0.2, 0.05, 0.0]).astype(np.uint8) * known
    scores = 1 / (1 + np.exp(2 - 2 * targets - rng.normal(size=(n, 4)) * 2))
    return targets, scores.astype(np.float32), known


def streamed(problem: tuple[Array, Array, Array], cuts: list[int], bins: int = 4096) -> Stream:
    stream = Stream(4, THRESHOLDS, train_positives=TRAIN, bins=bins)
    for rows in np.split(np.arange(len(problem[0])), cuts):
        stream.add(*(array[rows] for array in problem))
    return stream


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(0, 999), st.sampled_from((4, 64, 4096)),
    st.sampled_from((0.7, 1.0)),
)  # fmt: skip
def test_figures_are_exact_but_for_rankings_and_those_are_within_their_errors(
    n: int, seed: int, bins: int, known_share: float
) -> None:
    arrays = problem(n, seed, known_share=known_share)
    stream = streamed(arrays, [n // 3, n // 2], bins)
    expected = all_metrics(*arrays[:2], THRESHOLDS, arrays[2], train_positives=TRAIN)
    figures, errors = stream.figures(), stream.errors()
    assert set(figures) == set(expected) and set(errors) == RANKED
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=errors.get(name, 0) + 1e-9, nan_ok=True)


def test_errors_shrink_with_the_bins_and_are_not_idle() -> None:
    arrays = problem(3000, 0)
    exact = all_metrics(*arrays[:2], THRESHOLDS)["map"]
    coarse, fine = streamed(arrays, [], bins=8), streamed(arrays, [], bins=4096)
    assert fine.errors()["map"] < 0.005 < coarse.errors()["map"]
    assert abs(coarse.figures()["map"] - exact) > fine.errors()["map"]


@pytest.mark.parametrize("front", [True, False])
def test_the_error_is_reached_by_the_worst_order_inside_a_bin(front: bool) -> None:
    """All scores share a bin: positives tied in front, or one by one behind the negatives."""
    n_positive, n = 5, 20
    targets = np.zeros((n, 1), dtype=np.uint8)
    targets[:n_positive] = 1
    scores = 0.6 + np.linspace(0, 1e-4, n, dtype=np.float32)[::-1, None]
    scores[:n_positive] = 0.6002 if front else 0.6 - 1e-5 * np.arange(1, n_positive + 1)[:, None]
    stream = Stream(1, bins=8)
    stream.add(targets, scores.astype(np.float32))
    exact = all_metrics(targets, scores.astype(np.float32), 0.5)["map"]
    both = [1 - n_positive / n, n_positive / n - np.mean([j / (15 + j) for j in range(1, 6)])]
    assert abs(stream.figures()["map"] - exact) == pytest.approx(both[0] if front else both[1])
    assert stream.errors()["map"] == pytest.approx(max(both))


def test_scores_that_have_a_bin_each_lose_nothing() -> None:
    targets, scores, _ = problem(500, 1)
    scores = (np.clip(scores, 0, 1) * 10).round().astype(np.float32) / 10  # 0 and 1 among them
    stream = Stream(4, 0.5)
    stream.add(targets, scores)
    expected = all_metrics(targets, scores, 0.5)
    assert stream.figures() == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_merged_streams_are_one_stream() -> None:
    arrays = problem(200, 2, known_share=0.8)
    whole = streamed(arrays, [])
    first = streamed(tuple(a[:70] for a in arrays), [])  # type: ignore[arg-type]
    first.merge(streamed(tuple(a[70:] for a in arrays), [30]))  # type: ignore[arg-type]
    assert first.figures() == pytest.approx(whole.figures(), abs=1e-12, nan_ok=True)
    assert first.errors() == pytest.approx(whole.errors(), nan_ok=True)


@pytest.mark.parametrize("other", [Stream(4, 0.3), Stream(3, 0.5), Stream(4, 0.5, bins=8)])
def test_streams_of_other_settings_are_not_merged(other: Stream) -> None:
    with pytest.raises(ValueError, match="can't be merged"):
        Stream(4, 0.5).merge(other)


def test_an_empty_stream_has_figures_that_are_0_or_nan() -> None:
    figures = Stream(2).figures()
    assert figures["micro/f1"] == 0 and np.isnan(figures["map"])
