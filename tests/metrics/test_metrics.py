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
    METRICS,
    NINE,
    Predictions,
    all_metrics,
    baseline_metrics,
    baseline_scores,
    label_average_precision,
    labels_averaged,
    per_label_table,
)
from nuswide.metrics.decisions import top_three

Array = NDArray[Any]


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
    metrics = all_metrics(targets, scores, 0.5)
    assert {name: metrics[name] for name in NINE} == pytest.approx({
        "micro/precision": 2 / 3, "micro/recall": 2 / 3, "micro/f1": 2 / 3,
        "macro/precision": 1 / 3, "macro/recall": 1 / 3, "macro/f1": 1 / 3,
        "samples/precision": 3 / 4, "samples/recall": 3 / 4, "samples/f1": 3 / 4,
    })  # fmt: skip


def test_a_score_at_the_threshold_is_predicted() -> None:
    one = np.ones((1, 1), dtype=np.uint8)
    half = np.full((1, 1), 0.5, dtype=np.float32)
    assert all_metrics(one, half, 0.5)["micro/f1"] == 1
    assert all_metrics(one, half, 0.51)["micro/f1"] == 0


@pytest.mark.parametrize("n_labels", [1, 4])
def test_nothing_true_and_nothing_predicted_counts_as_0(n_labels: int) -> None:
    zeros = np.zeros((3, n_labels))
    metrics = all_metrics(zeros.astype(np.uint8), zeros.astype(np.float32), 0.5)
    assert {metrics[name] for name in (*NINE, "cf1", "of1")} == {0.0}


def test_one_label_has_its_own_f1_and_not_the_accuracy() -> None:
    targets = np.array([[1], [0], [0], [0]], dtype=np.uint8)
    metrics = all_metrics(targets, np.zeros((4, 1), dtype=np.float32), 0.5)
    assert metrics["micro/f1"] == 0  # accuracy, with absence as a class, would be 0.75
    assert metrics["macro/f1"] == 0


@settings(max_examples=50, deadline=None)
@given(batches())
def test_all_metrics_are_shares_or_nan(batch: tuple[Array, Array]) -> None:
    metrics = all_metrics(*batch, thresholds=0.5)
    without = metrics.pop("labels_without_positives")
    assert without == (batch[0].sum(axis=0) == 0).sum()
    assert math.isnan(metrics["map"]) == (without == batch[0].shape[1])
    assert 0 <= metrics.pop("coverage_error") <= batch[0].shape[1]
    assert all(0 <= value <= 1 for value in metrics.values() if not math.isnan(value))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_part_of_all_metrics(name: str) -> None:
    targets, scores = random_batch(10, 3, seed=0)
    positives = np.array([200, 50, 1])
    metrics = all_metrics(targets, scores, 0.5, train_positives=positives)
    own = METRICS[name](Predictions(targets, scores, 0.5, train_positives=positives))
    assert own and own == pytest.approx({key: metrics[key] for key in own}, nan_ok=True)
    assert all(type(value) is float for value in own.values())


def test_no_two_metrics_give_the_same_figure() -> None:
    targets, scores = random_batch(10, 3, seed=0)
    names = [key for metric in METRICS.values() for key in metric(Predictions(targets, scores))]
    assert len(names) == len(set(names))


def test_names_of_what_is_better_low_end_in_loss_or_error() -> None:
    """Right scores against their opposite, and nobody's names have to be kept up to date."""
    targets, _ = random_batch(40, 5, seed=1)
    right = all_metrics(targets, np.where(targets, 0.9, 0.1).astype(np.float32), 0.5)
    wrong = all_metrics(targets, np.where(targets, 0.1, 0.9).astype(np.float32), 0.5)
    for name in set(right) - {"labels_without_positives"}:
        if name.endswith(("loss", "error")):
            assert right[name] < wrong[name], name
        else:
            assert right[name] > wrong[name], name


def test_thresholds_of_a_label_each_are_used_label_by_label() -> None:
    targets, scores = random_batch(30, 4, seed=3)
    thresholds = np.array([0.2, 0.4, 0.6, 0.8])
    shifted = np.where(scores >= thresholds.astype(np.float32), 1, 0).astype(np.float32)
    expected, metrics = all_metrics(targets, shifted, 0.5), all_metrics(targets, scores, thresholds)
    for name in (*NINE, "cf1", "hamming_loss", "subset_accuracy"):
        assert metrics[name] == expected[name]


def test_a_threshold_is_compared_in_the_scores_precision() -> None:
    one, score = np.ones((1, 1), dtype=np.uint8), np.full((1, 1), 0.7, dtype=np.float32)
    for threshold in (0.7, np.array([0.7])):  # float32(0.7) < 0.7
        assert all_metrics(one, score, threshold)["micro/f1"] == 1


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_scores_that_are_no_probabilities_are_refused(bad: float) -> None:
    scores = np.full((2, 2), 0.5, dtype=np.float32)
    scores[1, 1] = bad
    with pytest.raises(ValueError, match="from 0 to 1"):
        all_metrics(np.ones((2, 2), dtype=np.uint8), scores, 0.5)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        all_metrics(np.ones((2, 3), dtype=np.uint8), np.zeros((2, 2), dtype=np.float32), 0.5)


# The six and the three best


def test_cf1_is_the_harmonic_mean_of_means_and_not_the_mean_of_f1() -> None:
    targets = np.array([[1, 1], [1, 0], [0, 0]], dtype=np.uint8)
    scores = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    metrics = all_metrics(targets, scores, 0.5)
    # label 0: precision 1, recall 1/2; label 1: no hit
    assert metrics["cp"] == 1 / 2 and metrics["cr"] == 1 / 4
    assert metrics["cf1"] == pytest.approx(1 / 3) and metrics["macro/f1"] == pytest.approx(1 / 3)
    better = np.array([[1, 0], [1, 0], [0, 0]], dtype=np.float32)
    metrics = all_metrics(targets, better, 0.5)
    assert metrics["cf1"] == metrics["macro/f1"] == 1 / 2
    uneven = np.array([[1, 1], [0, 1], [0, 1]], dtype=np.float32)
    metrics = all_metrics(targets, uneven, 0.5)
    # label 0: 1 and 1/2, F1 2/3; label 1: 1/3 and 1, F1 1/2
    assert metrics["macro/f1"] == pytest.approx(7 / 12)
    assert metrics["cf1"] == pytest.approx(12 / 17)


def test_the_three_best_are_taken_with_or_without_the_threshold() -> None:
    targets = np.array([[1, 1, 0, 0, 1]], dtype=np.uint8)
    scores = np.array([[0.9, 0.4, 0.6, 0.1, 0.2]], dtype=np.float32)
    metrics = all_metrics(targets, scores, 0.5)
    assert metrics["top3/op"] == pytest.approx(2 / 3) == metrics["top3/or"]
    assert metrics["top3_passing/op"] == 1 / 2
    assert metrics["top3_passing/or"] == pytest.approx(1 / 3)


def test_of_labels_that_tie_for_the_third_place_the_first_has_it() -> None:
    predictions = Predictions(
        np.zeros((2, 5), dtype=np.uint8), np.full((2, 5), 0.5, dtype=np.float32)
    )
    assert np.flatnonzero(top_three(predictions)[0]).tolist() == [0, 1, 2]


def test_an_unknown_label_takes_no_place_among_the_three() -> None:
    known = np.array([[False, True, False, True]])
    predictions = Predictions(
        np.zeros((1, 4), dtype=np.uint8), np.ones((1, 4), dtype=np.float32), known=known
    )
    assert top_three(predictions).tolist() == known.tolist()


# Rankings


def test_head_medium_and_tail_are_cut_at_more_than_100_and_fewer_than_20() -> None:
    targets, scores = random_batch(60, 5, seed=5)
    targets[0] = 1
    ap = label_average_precision(Predictions(targets, scores))
    metrics = all_metrics(targets, scores, 0.5, train_positives=np.array([101, 100, 20, 19, 0]))
    assert metrics["head_map"] == pytest.approx(ap[0])
    assert metrics["medium_map"] == pytest.approx(ap[1:3].mean())
    assert metrics["tail_map"] == pytest.approx(ap[3:].mean())
    assert "tail_map" not in all_metrics(targets, scores, 0.5)


def test_average_precision_by_hand() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.uint8)
    scores = np.array([[0.9, 0.5, 0.9], [0.8, 0.5, 0.8], [0.7, 0.5, 0.7], [0.6, 0.5, 0.6]])
    per_label = label_average_precision(Predictions(targets, scores.astype(np.float32)))
    # 1 at rank 1 and 2/3 at rank 3; then all tied, which is the share of positives
    assert per_label[:2] == pytest.approx([(1 + 2 / 3) / 2, 0.5])
    assert np.isnan(per_label[2])


def test_average_precision_does_not_depend_on_the_order_of_tied_images() -> None:
    targets, scores = random_batch(40, 3, seed=1)
    order = np.random.default_rng(0).permutation(40)
    assert label_average_precision(Predictions(targets[order], scores[order])) == pytest.approx(
        label_average_precision(Predictions(targets, scores)), nan_ok=True
    )


def test_map_ignores_labels_without_positives() -> None:
    targets, scores = random_batch(30, 5, seed=2)
    kept = targets.any(axis=0)
    assert 0 < kept.sum() < 5
    metrics = all_metrics(targets, scores, 0.5)
    alone = all_metrics(targets[:, kept], scores[:, kept], 0.5)
    assert (
        metrics["map"]
        == alone["map"]
        == pytest.approx(
            average_precision_score(targets[:, kept], scores[:, kept], average="macro")
        )
    )
    assert metrics["labels_without_positives"] == 5 - kept.sum()
    assert alone["labels_without_positives"] == 0


def test_macro_f1_counts_a_label_without_positives_as_0_and_its_twin_leaves_it_out() -> None:
    targets, scores = random_batch(200, 4, seed=0)
    targets[0] = 1
    before = all_metrics(targets, scores, 0.5)
    assert before["macro/f1_with_positives"] == before["macro/f1"]
    never = np.zeros((200, 1), np.uint8), np.full((200, 1), 0.01, np.float32)
    after = all_metrics(np.hstack([targets, never[0]]), np.hstack([scores, never[1]]), 0.5)
    assert after["macro/f1"] == pytest.approx(0.8 * before["macro/f1"])
    for name in ("macro/f1_with_positives", "map"):
        assert after[name] == before[name]
    assert labels_averaged(before, 4) == ""
    assert labels_averaged(after, 5) == (
        "map is over the 4 of 5 labels that have a positive, macro/f1 over all 5; over the 4, it "
        f"is {before['macro/f1']:.3f} (macro/f1_with_positives)."
    )


def test_map_counts_images_without_a_label_as_negatives() -> None:
    targets = np.array([[0], [1]], dtype=np.uint8)
    scores = np.array([[0.9], [0.1]], dtype=np.float32)
    assert all_metrics(targets, scores, 0.5)["map"] == 0.5


def test_map_is_nan_when_no_label_has_a_positive() -> None:
    targets = np.zeros((4, 3), dtype=np.uint8)
    metrics = all_metrics(targets, np.ones((4, 3), dtype=np.float32), 0.5)
    assert math.isnan(metrics["map"]) and metrics["labels_without_positives"] == 3
    assert math.isnan(metrics["macro/f1_with_positives"])
    assert labels_averaged(metrics, 3) == "No label has a positive, so that map is not defined."


def test_map_does_not_depend_on_the_threshold() -> None:
    targets, scores = random_batch(20, 4, seed=3)
    assert len({all_metrics(targets, scores, t)["map"] for t in (0, 0.5, 1)}) == 1


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
    metrics = baseline_metrics(train, test)
    assert set(metrics) == {"all_labels", "top_k"}
    assert metrics["top_k"]["micro/f1"] == 0.5  # it always says the first label alone
    assert metrics["all_labels"]["micro/recall"] == 1
    assert metrics["all_labels"]["micro/precision"] == pytest.approx(2 / 6)
    assert metrics["all_labels"]["map"] == 0.5
    assert metrics["all_labels"]["labels_without_positives"] == 1


# Unknown entries


def unknown_batch(seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    known = rng.random((40, 5)) < 0.7
    targets = (rng.random((40, 5)) < 0.4).astype(np.uint8) * known
    return targets, rng.random((40, 5)).astype(np.float32), known


@pytest.mark.parametrize("seed", range(5))
def test_unknown_entries_do_not_change_any_figure(seed: int) -> None:
    targets, scores, known = unknown_batch(seed)
    before = all_metrics(targets, scores, 0.5, known)
    for elsewhere in (0.0, 1.0):
        disturbed = np.where(known, scores, np.float32(elsewhere))
        assert all_metrics(targets, disturbed, 0.5, known) == before
        table = per_label_table(tuple("abcde"), targets, disturbed, 0.5, known)
        assert table == per_label_table(tuple("abcde"), targets, scores, 0.5, known)


def test_what_targets_say_of_unknown_entries_does_not_matter() -> None:
    targets, scores, known = unknown_batch(1)
    claimed = np.where(known, targets, 1).astype(np.uint8)
    assert all_metrics(claimed, scores, 0.5, known) == all_metrics(targets, scores, 0.5, known)


def test_metrics_of_known_entries_are_those_of_the_labels_known_images() -> None:
    targets, scores, known = unknown_batch(0)
    expected = [
        average_precision_score(targets[known[:, c], c], scores[known[:, c], c]) for c in range(5)
    ]
    metrics = all_metrics(targets, scores, 0.5, known)
    assert metrics["map"] == pytest.approx(np.mean(expected))
    assert metrics["micro/f1"] == pytest.approx(f1_score(targets[known], scores[known] >= 0.5))
