"""All metrics against scikit-learn's, torchmetrics' or a slow definition, on random problems."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn import metrics as sk

from nuswide.metrics import AVERAGES, KINDS, all_metrics, per_label_table

Array = NDArray[Any]
Problem = tuple[Array, Array, Array, Array, Array]  # targets, scores, thresholds, known, train


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """One image or label and more, ties, unknown entries, labels and images without a positive."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    known = draw(st.one_of(
        st.just(np.ones(shape, dtype=bool)), arrays(bool, shape, elements=st.booleans())
    ))  # fmt: skip
    targets = draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) * known
    targets[:, draw(st.integers(0, shape[1] - 1))] &= draw(st.integers(0, 1))
    targets[draw(st.integers(0, shape[0] - 1))] &= draw(st.integers(0, 1))
    level = st.integers(0, draw(st.sampled_from((3, 40)))).map(lambda x: x / 40)
    scores = draw(arrays(np.float32, shape, elements=level.map(np.float32)))
    thresholds = draw(arrays(np.float32, shape[1], elements=level.map(np.float32)))
    train = draw(arrays(np.int64, shape[1], elements=st.sampled_from((0, 19, 20, 100, 101))))
    return targets, scores, thresholds, known, train


def padded(true: Array, predicted: Array) -> tuple[Array, Array]:
    """An empty second label stops scikit-learn from reading one label as a binary problem."""
    return np.pad(true, ((0, 0), (0, 1))), np.pad(predicted, ((0, 0), (0, 1)))


def harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def mean_or_nan(values: list[float], weights: list[float] | None = None) -> float:
    return float(np.average(values, weights=weights)) if values else float("nan")


def three_best(score: Array, known: Array) -> Array:
    best_first = sorted(np.flatnonzero(known), key=lambda c: (-score[c], c))
    return np.isin(np.arange(len(score)), best_first[:3])


def of_kinds(true: Array, predicted: Array, average: str) -> dict[str, float]:
    """Precision, recall and F1 of one average, at once, as scikit-learn computes them."""
    both = padded(true, predicted)
    values = sk.precision_recall_fscore_support(*both, average=average, zero_division=0)
    scale = (true.shape[1] + 1) / true.shape[1] if average == "macro" else 1.0
    return {kind: value * scale for kind, value in zip(KINDS, values[:3], strict=True)}


def oracle_of_decisions(true: Array, scores: Array, thresholds: Array, known: Array) -> Any:
    predicted = (scores >= thresholds) & known
    metrics = {
        f"{average}/{kind}": value
        for average in AVERAGES
        for kind, value in of_kinds(true, predicted, average).items()
    }
    three = np.array([three_best(s, k) for s, k in zip(scores, known, strict=True)])
    for prefix, chosen in (("", predicted), ("top3/", three), ("top3_passing/", three & predicted)):
        for letter, average in (("c", "macro"), ("o", "micro")):
            kinds = of_kinds(true, chosen, average)
            p, r = kinds["precision"], kinds["recall"]
            named = {f"{letter}p": p, f"{letter}r": r, f"{letter}f1": harmonic(p, r)}
            metrics |= {prefix + name: value for name, value in named.items()}
    f1 = sk.f1_score(*padded(true, predicted), average=None, zero_division=0)[:-1]
    metrics["macro/f1_with_positives"] = mean_or_nan(f1[true.any(axis=0)].tolist())
    entries = true[known], predicted[known]
    metrics["hamming_loss"] = sk.hamming_loss(*entries) if known.any() else 0.0
    metrics["subset_accuracy"] = sk.accuracy_score(*padded(true, predicted))
    return metrics


def oracle_of_labels(true: Array, scores: Array, known: Array, train: Array) -> Any:
    ap, support, area, error, brier = {}, {}, [], [], []
    for label in range(true.shape[1]):
        t, s = true[known[:, label], label], scores[known[:, label], label]
        if t.any():
            ap[label] = sk.average_precision_score(t, s)
            support[label] = t.sum()
        if t.any() and not t.all():
            area.append(sk.roc_auc_score(t, s))
        if len(t):
            error.append(slow_calibration_error(t, s))
            brier.append(sk.brier_score_loss(t, s, pos_label=1))
    flat = true[known], scores[known]
    is_ranked = flat[0].any() and not flat[0].all()
    parts = {"head": train > 100, "medium": (train >= 20) & (train <= 100), "tail": train < 20}
    return {
        "map": mean_or_nan(list(ap.values())),
        "weighted_map": mean_or_nan(list(ap.values()), list(support.values())),
        "micro/ap": sk.average_precision_score(*flat) if flat[0].any() else float("nan"),
        "labels_without_positives": true.shape[1] - len(ap),
        "macro/auroc": mean_or_nan(area),
        "micro/auroc": sk.roc_auc_score(*flat) if is_ranked else float("nan"),
        "calibration_error": mean_or_nan(error),
        "brier_loss": mean_or_nan(brier),
        **{f"{k}_map": mean_or_nan([ap[c] for c in np.flatnonzero(v) if c in ap])
           for k, v in parts.items()},
    }  # fmt: skip


def slow_calibration_error(true: Array, score: Array) -> float:
    """Guo et al. 2017, equation 3, with 15 bins of equal width."""
    bins = [min(14, int(s * 15)) for s in score.tolist()]
    return sum(
        len(inside) / len(bins) * abs(true[inside].mean() - score[inside].mean())
        for inside in ([i for i, b in enumerate(bins) if b == bin_] for bin_ in set(bins))
    )


def oracle_of_images(true: Array, scores: Array, known: Array) -> Any:
    """scikit-learn's, image by image, as it knows no unknown entries."""
    values: dict[str, list[float]] = {"lrap": [], "coverage_error": [], "ranking_loss": []}
    functions = (
        sk.label_ranking_average_precision_score, sk.coverage_error, sk.label_ranking_loss
    )  # fmt: skip
    if known.all() and true.shape[1] > 1:
        return {k: f(true, scores) for k, f in zip(values, functions, strict=True)}
    nothing_true = (1.0, 0.0, 0.0)
    for t, s, k in zip(true, scores, known, strict=True):
        for (name, so_far), function, empty in zip(
            values.items(), functions, nothing_true, strict=True
        ):
            if k.sum() > 1:
                so_far.append(function(t[None, k], s[None, k]))
            else:  # scikit-learn wants two labels; one can't be ranked wrongly
                so_far.append(float(t[k].sum()) if name == "coverage_error" else empty)
    return {name: np.mean(of_images) for name, of_images in values.items()}


def oracle(problem: Problem) -> dict[str, float]:
    targets, scores, thresholds, known, train = problem
    true = targets > 0
    # scikit-learn's rankings are wrong on float32 under SciPy 1.18.
    scores, thresholds = scores.astype(np.float64), thresholds.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            **oracle_of_decisions(true, scores, thresholds, known),
            **oracle_of_labels(true, scores, known, train),
            **oracle_of_images(true, scores, known),
        }


def assert_all_metrics_equal_the_oracles(problem: Problem) -> None:
    targets, scores, thresholds, known, train = problem
    metrics = all_metrics(targets, scores, thresholds, known, train_positives=train)
    expected = oracle(problem)
    assert set(metrics) == set(expected)
    assert metrics == pytest.approx(expected, abs=1e-9, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_all_metrics_equal_the_oracles(problem: Problem) -> None:
    assert_all_metrics_equal_the_oracles(problem)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(problems())
def test_all_metrics_equal_the_oracles_on_many_problems(problem: Problem) -> None:
    assert_all_metrics_equal_the_oracles(problem)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((300, 6)) < [0.6, 0.4, 0.3, 0.2, 0.1, 0.1]).astype(np.uint8)
    scores = np.clip(0.3 * targets + 0.6 * rng.random((300, 6)), 0, 1).astype(np.float32)
    metrics = all_metrics(targets, scores, 0.4)
    given, n = (torch.from_numpy(scores), torch.from_numpy(targets).long()), 6
    expected = {
        "map": tm.multilabel_average_precision(*given, n, average="macro"),
        "weighted_map": tm.multilabel_average_precision(*given, n, average="weighted"),
        "micro/ap": tm.multilabel_average_precision(*given, n, average="micro"),
        "macro/auroc": tm.multilabel_auroc(*given, n, average="macro"),
        "micro/auroc": tm.multilabel_auroc(*given, n, average="micro"),
        "lrap": tm.multilabel_ranking_average_precision(*given, n),
        "coverage_error": tm.multilabel_coverage_error(*given, n),
        "ranking_loss": tm.multilabel_ranking_loss(*given, n),
        "hamming_loss": tm.multilabel_hamming_distance(*given, n, threshold=0.4, average="micro"),
        "subset_accuracy": tm.multilabel_exact_match(*given, n, threshold=0.4),
        "macro/f1": tm.multilabel_f1_score(*given, n, threshold=0.4, average="macro"),
        "of1": tm.multilabel_f1_score(*given, n, threshold=0.4, average="micro"),
        "calibration_error": np.mean([
            tm.binary_calibration_error(*(x[:, c].contiguous() for x in given), n_bins=15)
            for c in range(n)
        ]),
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(problems())
def test_the_per_label_table_equals_the_oracles(problem: Problem) -> None:
    targets, scores, thresholds, known, _ = problem
    names = tuple(f"label {c}" for c in range(targets.shape[1]))
    table = per_label_table(names, targets, scores, thresholds, known)
    assert sorted(table["support"], reverse=True) == table["support"]
    for row, name in enumerate(table["label"]):
        c = names.index(name)
        true, score, is_known = (x[:, [c]] for x in (targets > 0, scores, known))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = oracle_of_decisions(true, score, thresholds[[c]], is_known)
            expected |= oracle_of_labels(true, score, is_known, np.zeros(1))
        same = {
            "ap": "map", "f1": "macro/f1", "precision": "macro/precision", "recall": "macro/recall",
            "auroc": "macro/auroc", "calibration_error": "calibration_error",
            "brier_loss": "brier_loss",
        }  # fmt: skip
        found = {key: np.nan if table[key][row] is None else table[key][row] for key in same}
        assert found == pytest.approx(
            {key: expected[value] for key, value in same.items()}, abs=6e-5, nan_ok=True
        )
        assert table["support"][row] == targets[:, c].sum()
        assert table["threshold"][row] == pytest.approx(thresholds[c], abs=6e-5)
        n_known = known[:, c].sum()
        assert table["share"][row] == pytest.approx(targets[:, c].sum() / max(n_known, 1), abs=6e-5)
