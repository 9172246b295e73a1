import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
)

from nuswide.metrics import (
    AVERAGES,
    KINDS,
    METRICS,
    NINE,
    all_figures,
    average_precision,
    baseline_figures,
    baseline_scores,
    mean_average_precision,
    per_label_table,
    precision_recall_f1,
)

Array = NDArray[Any]


def slow_average_precision(target: Array, score: Array) -> float:
    """Sum over the distinct scores, high to low, of the rise in recall times the precision."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        predicted = [s >= threshold for s in score]
        hits = sum(1 for p, t in zip(predicted, target, strict=True) if p and t)
        recall, precision = hits / target.sum(), hits / sum(predicted)
        area += (recall - recall_before) * precision
        recall_before = recall
    return float(area)


def random_batch(n: int, n_labels: int, seed: int) -> tuple[Array, Array]:
    """Targets and scores with ties, an image and a label without a target, and quiet ones."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, n_labels)) < rng.random(n_labels)).astype(np.uint8)
    scores = rng.integers(0, 11, (n, n_labels)).astype(np.float32) / 10
    targets[rng.integers(n)] = 0
    targets[:, rng.integers(n_labels)] = 0
    scores[rng.integers(n)] = 0
    scores[:, rng.integers(n_labels)] = 0
    return targets, scores


@st.composite
def batches(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    targets = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    level = st.integers(0, 4).map(lambda x: x / 4)
    return targets, draw(arrays(np.float32, shape, elements=level))


# Precision, recall, F1


def test_precision_recall_f1_by_hand() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0]], dtype=np.uint8)
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.1]], dtype=np.float32)
    figures = precision_recall_f1(targets, scores, 0.5)
    assert figures == pytest.approx({
        "micro/precision": 2 / 3, "micro/recall": 2 / 3, "micro/f1": 2 / 3,
        "macro/precision": 1 / 3, "macro/recall": 1 / 3, "macro/f1": 1 / 3,
        "samples/precision": 3 / 4, "samples/recall": 3 / 4, "samples/f1": 3 / 4,
    })  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_the_nine_equal_scikit_learns(seed: int, threshold: float) -> None:
    targets, scores = random_batch(30, 6, seed)
    figures = precision_recall_f1(targets, scores, threshold)
    functions = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    for average in AVERAGES:
        for kind in KINDS:
            expected = functions[kind](
                targets, scores >= threshold, average=average, zero_division=0
            )
            assert figures[f"{average}/{kind}"] == pytest.approx(expected)
    assert tuple(figures) == NINE


def test_a_score_at_the_threshold_is_predicted() -> None:
    one = np.ones((1, 1), dtype=np.uint8)
    half = np.full((1, 1), 0.5, dtype=np.float32)
    assert precision_recall_f1(one, half, 0.5)["micro/f1"] == 1
    assert precision_recall_f1(one, half, 0.51)["micro/f1"] == 0


@pytest.mark.parametrize("n_labels", [1, 4])
def test_nothing_true_and_nothing_predicted_counts_as_0(n_labels: int) -> None:
    zeros = np.zeros((3, n_labels))
    figures = precision_recall_f1(zeros.astype(np.uint8), zeros.astype(np.float32), 0.5)
    assert set(figures.values()) == {0.0}


def test_one_label_has_its_own_f1_and_not_the_accuracy() -> None:
    targets = np.array([[1], [0], [0], [0]], dtype=np.uint8)
    figures = precision_recall_f1(targets, np.zeros((4, 1), dtype=np.float32), 0.5)
    assert figures["micro/f1"] == 0  # accuracy, with absence as a class, would be 0.75
    assert figures["macro/f1"] == 0


@settings(max_examples=50, deadline=None)
@given(batches())
def test_all_figures_are_shares_or_nan(batch: tuple[Array, Array]) -> None:
    figures = all_figures(*batch, threshold=0.5)
    without = figures.pop("labels_without_positives")
    assert without == (batch[0].sum(axis=0) == 0).sum()
    assert math.isnan(figures["map"]) == (without == batch[0].shape[1])
    assert all(0 <= value <= 1 for value in figures.values() if not math.isnan(value))


def test_all_figures_holds_every_metric() -> None:
    targets, scores = random_batch(10, 3, seed=0)
    figures = all_figures(targets, scores, 0.5)
    for metric in METRICS.values():
        assert metric(targets, scores, 0.5).items() <= figures.items()
    assert set(figures) == {*NINE, "map", "labels_without_positives"}


# Average precision


@settings(max_examples=50, deadline=None)
@given(batches())
def test_average_precision_equals_the_slow_definition(batch: tuple[Array, Array]) -> None:
    targets, scores = batch
    for label, value in enumerate(average_precision(targets, scores)):
        if targets[:, label].any():
            expected = slow_average_precision(targets[:, label], scores[:, label])
            assert value == pytest.approx(expected)
            assert value == pytest.approx(
                average_precision_score(targets[:, label], scores[:, label])
            )
        else:
            assert math.isnan(value)


def test_average_precision_by_hand() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.uint8)
    scores = np.array([[0.9, 0.5, 0.9], [0.8, 0.5, 0.8], [0.7, 0.5, 0.7], [0.6, 0.5, 0.6]])
    per_label = average_precision(targets, scores.astype(np.float32))
    # 1 at rank 1 and 2/3 at rank 3; then all tied, which is the share of positives
    assert per_label[:2] == pytest.approx([(1 + 2 / 3) / 2, 0.5])
    assert np.isnan(per_label[2])


def test_average_precision_does_not_depend_on_the_order_of_tied_images() -> None:
    targets, scores = random_batch(40, 3, seed=1)
    order = np.random.default_rng(0).permutation(40)
    assert average_precision(targets[order], scores[order]) == pytest.approx(
        average_precision(targets, scores), nan_ok=True
    )


def test_map_ignores_labels_without_positives() -> None:
    targets, scores = random_batch(30, 5, seed=2)
    kept = targets.any(axis=0)
    assert 0 < kept.sum() < 5
    figures = mean_average_precision(targets, scores, 0.5)
    alone = mean_average_precision(targets[:, kept], scores[:, kept], 0.5)
    assert (
        figures["map"]
        == alone["map"]
        == pytest.approx(
            average_precision_score(targets[:, kept], scores[:, kept], average="macro")
        )
    )
    assert figures["labels_without_positives"] == 5 - kept.sum()
    assert alone["labels_without_positives"] == 0


def test_map_counts_images_without_a_label_as_negatives() -> None:
    targets = np.array([[0], [1]], dtype=np.uint8)
    scores = np.array([[0.9], [0.1]], dtype=np.float32)
    assert mean_average_precision(targets, scores, 0.5)["map"] == 0.5


def test_map_is_nan_when_no_label_has_a_positive() -> None:
    targets = np.zeros((4, 3), dtype=np.uint8)
    figures = mean_average_precision(targets, np.ones((4, 3), dtype=np.float32), 0.5)
    assert math.isnan(figures["map"]) and figures["labels_without_positives"] == 3


def test_map_does_not_depend_on_the_threshold() -> None:
    targets, scores = random_batch(20, 4, seed=3)
    assert len({mean_average_precision(targets, scores, t)["map"] for t in (0, 0.5, 1)}) == 1


# Per label


def test_the_per_label_table_has_frequent_labels_first_and_agrees_with_scikit_learn() -> None:
    labels = ("rare", "absent", "often", "a tie", "tied")
    targets = np.array(
        [[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=np.uint8
    )
    scores = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    table = per_label_table(labels, targets, scores, 0.5)
    assert table["label"] == ["often", "a tie", "tied", "rare", "absent"]
    assert table["support"] == [3, 2, 2, 1, 0]
    assert table["share"] == [0.75, 0.5, 0.5, 0.25, 0.0]
    assert table["ap"][4] is None and None not in table["ap"][:4]
    functions = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for kind, function in functions.items():
        expected = function(targets, scores >= 0.5, average=None, zero_division=0)
        by_name = dict(zip(labels, expected, strict=True))
        assert table[kind] == pytest.approx([by_name[x] for x in table["label"]], abs=1e-4)


def test_the_per_label_table_is_plain_python_that_json_can_hold() -> None:
    targets, scores = random_batch(10, 4, seed=4)
    table = per_label_table(tuple("abcd"), targets, scores, 0.5)
    assert {len(column) for column in table.values()} == {4}
    assert {type(x) for column in table.values() for x in column} <= {str, int, float, type(None)}


# Baselines


@settings(max_examples=50, deadline=None)
@given(batches())
def test_top_k_has_the_best_micro_f1_on_train_of_all_k(batch: tuple[Array, Array]) -> None:
    targets, _ = batch
    most_frequent = sorted(range(targets.shape[1]), key=lambda c: -int(targets[:, c].sum()))

    def micro_f1(labels: list[int]) -> float:
        predictions = np.zeros_like(targets)
        predictions[:, labels] = 1
        hits = int((predictions & targets).sum())
        return 2 * hits / (int(predictions.sum()) + int(targets.sum()))

    best = max(micro_f1(most_frequent[:k]) for k in range(1, len(most_frequent) + 1))
    chosen = np.flatnonzero(baseline_scores(targets)["top_k"]).tolist()
    assert micro_f1(chosen) == pytest.approx(best)
    assert set(chosen) == set(most_frequent[: len(chosen)])


def test_top_k_leaves_out_labels_that_train_does_not_have() -> None:
    targets = np.array([[0, 1, 0], [0, 1, 0]], dtype=np.uint8)
    assert baseline_scores(targets)["top_k"].tolist() == [0, 1, 0]


def test_the_baselines_are_measured_on_the_other_split() -> None:
    train = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=np.uint8)
    test = np.array([[1, 0, 0], [0, 0, 1]], dtype=np.uint8)
    figures = baseline_figures(train, test)
    assert set(figures) == {"all_labels", "top_k"}
    assert figures["top_k"]["micro/f1"] == 0.5  # it always says the first label alone
    assert figures["all_labels"]["micro/recall"] == 1
    assert figures["all_labels"]["micro/precision"] == pytest.approx(2 / 6)
    assert figures["all_labels"]["map"] == 0.5
    assert figures["all_labels"]["labels_without_positives"] == 1


# Unknown entries


def unknown_batch(seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    known = rng.random((40, 5)) < 0.7
    targets = (rng.random((40, 5)) < 0.4).astype(np.uint8) * known
    return targets, rng.random((40, 5)).astype(np.float32), known


@pytest.mark.parametrize("seed", range(5))
def test_unknown_entries_do_not_change_any_figure(seed: int) -> None:
    targets, scores, known = unknown_batch(seed)
    before = all_figures(targets, scores, 0.5, known)
    for elsewhere in (0.0, 1.0):
        disturbed = np.where(known, scores, np.float32(elsewhere))
        assert all_figures(targets, disturbed, 0.5, known) == before
        table = per_label_table(tuple("abcde"), targets, disturbed, 0.5, known)
        assert table == per_label_table(tuple("abcde"), targets, scores, 0.5, known)


def test_figures_of_known_entries_are_those_of_the_labels_known_images() -> None:
    targets, scores, known = unknown_batch(0)
    expected = [
        average_precision_score(targets[known[:, c], c], scores[known[:, c], c]) for c in range(5)
    ]
    figures = all_figures(targets, scores, 0.5, known)
    assert figures["map"] == pytest.approx(np.mean(expected))
    assert figures["micro/f1"] == pytest.approx(f1_score(targets[known], scores[known] >= 0.5))
