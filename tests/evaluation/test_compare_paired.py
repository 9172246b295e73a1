"""How seeds enter an interval, and what a verdict takes."""

import numpy as np
import pytest
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.entities.run_inputs import RunInputs
from scipy import stats

from nuswide.evaluation.compare import tables
from nuswide.evaluation.compare.entrants import Entrant, _with_names
from nuswide.evaluation.compare.paired import Compared, _estimates, _Pool, _with_seeds
from nuswide.metrics.bootstrap import Difference, mean_of, resample


def entrant(name: str, metrics: dict[str, float] | None = None, **params: str) -> Entrant:
    info = RunInfo(
        run_id=f"{name}-0123456789", experiment_id="0", user_id="", status="FINISHED",
        start_time=0, end_time=1, lifecycle_stage="active", run_name=name,
    )  # fmt: skip
    data = RunData(
        [Metric(k, v, 0, 0) for k, v in (metrics or {}).items()],
        [Param(k, v) for k, v in params.items()],
        [RunTag("data.test_digest", "d")],
    )
    return Entrant(name, (Run(info, data, RunInputs([])),), frozenset([name]), False)


@pytest.mark.parametrize(
    ("compared", "verdict"),
    [
        (Compared(0.02, 0.01, 0.03, 0.001, 0.01), "better"),
        (Compared(-0.02, -0.03, -0.01, 0.001, 0.01), "worse"),
        (Compared(0.02, 0.001, 0.03, 0.04, 0.4), "tie"),  # not after correction
        (Compared(0.02, -0.001, 0.03, 0.06, 0.06), "tie"),
        (Compared(0.02, np.nan, np.nan, np.nan, np.nan), "unknown"),
    ],
)
def test_a_verdict_takes_an_interval_without_0_and_a_corrected_p(
    compared: Compared, verdict: str
) -> None:
    assert compared.verdict == verdict


def test_one_seed_on_a_side_leaves_the_images_interval_as_it_is() -> None:
    found = [Difference(0.02, 0.01, 0.03, 0.0001)]
    assert _with_seeds(found, [np.array([[0.5]]), np.array([[0.4], [0.6]])]) == found


def test_seeds_alone_give_the_interval_and_p_value_of_welchs_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.02, (4, 1)), rng.normal(0.45, 0.05, (3, 1))
    change = float(a.mean() - b.mean())
    (found,) = _with_seeds([Difference(change, change, change, 0.0)], [a, b])
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    low, high = expected.confidence_interval()
    assert found[1:] == pytest.approx([low, high, expected.pvalue])


def test_seeds_that_agree_leave_the_images_interval_as_it_is() -> None:
    same = np.full((3, 1), 0.5)
    (found,) = _with_seeds([Difference(0.02, 0.01, 0.03, 0.0)], [same, same])
    assert found[:3] == pytest.approx([0.02, 0.01, 0.03], abs=1e-6)


def test_a_figure_of_seeds_has_an_interval_that_ends_where_metrics_do() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 5)) < 0.3).astype(np.uint8)
    seeds = [resample(targets, rng.random((60, 5)), 0.97) for _ in range(2)]
    metrics, label_ap = (np.stack([getattr(s, n) for s in seeds]) for n in ("metrics", "label_ap"))
    f1 = _estimates(_Pool(mean_of(seeds), metrics, label_ap))["micro/f1"]
    assert 0 == f1.low < f1.value < f1.high < 1


def test_with_seeds_the_true_difference_of_two_recipes_is_covered() -> None:
    """2,000 pairs of recipes of three seeds each: images and seeds both draw."""
    rng = np.random.default_rng(1)
    trials, seeds, by_image, by_seed = 2000, 3, 0.01, 0.01
    sides = [0.5 + rng.normal(0, by_seed, (seeds, trials)) for _ in range(2)]
    change = sides[0].mean(axis=0) - sides[1].mean(axis=0) + rng.normal(0, by_image, trials)
    half = 1.959964 * by_image
    found = _with_seeds([Difference(c, c - half, c + half, 0.0) for c in change], sides)
    covered = np.mean([d.low <= 0 <= d.high for d in found])
    alone = np.mean(np.abs(change) <= half)
    assert 0.94 <= covered <= 0.985 and alone < 0.90


def test_only_params_that_differ_are_shown_and_a_spelling_is_no_difference() -> None:
    found = tables.params([entrant("a", lr="1e-4", seed="3", x="1"), entrant("b", lr="0.0001",
                                                                            seed="3")])  # fmt: skip
    assert found.rows == (("x", "1", ""),)


def test_names_lose_what_all_share_and_no_two_are_the_same() -> None:
    names = ["train data=x lr=1", "train data=x lr=2", "train data=x lr=2"]
    shown = [e.name for e in _with_names([entrant(name) for name in names])]
    assert shown[0] == "train lr=1" and shown[1].startswith("train lr=2 (")
    assert [e.name for e in _with_names([entrant("a=1"), entrant("b")])] == ["a=1", "b"]
