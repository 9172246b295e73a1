from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels
from nuswide.data.sampling import SAMPLINGS, create_sampling, draw_rows, epoch_order, repeat_factors


def labels(*columns: list[int], n: int, known: NDArray[np.bool_] | None = None) -> TrainLabels:
    """n images; each column lists those that have the label."""
    targets = np.zeros((n, len(columns)), np.uint8)
    for label, column in enumerate(columns):
        targets[column, label] = 1
    return TrainLabels(tuple(map(str, range(len(columns)))), targets, known)


def places(train: TrainLabels, epoch: int = 0, seed: int = 0, **changes: Any) -> list[int]:
    """The images of an epoch, in its order."""
    sample = create_sampling(Config(**changes), train)
    indices = np.arange(len(train.targets))
    return epoch_order(indices, sample, batch_size=1, seed=seed, epoch=epoch).ravel().tolist()


def order_of(
    n: int = 20, batch_size: int = 4, seed: int = 0, epoch: int = 0, sampling: str = "uniform"
) -> list[list[int]]:
    train = labels(list(range(0, n, 2)), list(range(0, n, 7)), n=n)
    sample = create_sampling(Config(sampling=sampling), train)
    indices = np.arange(n) * 10
    return epoch_order(indices, sample, batch_size=batch_size, seed=seed, epoch=epoch).tolist()


# epoch_order


@given(
    n=st.integers(0, 60), batch_size=st.integers(1, 12), seed=st.integers(0, 9), epoch=st.integers()
)
def test_an_epoch_is_a_permutation_less_the_short_rest(
    n: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = order_of(n, batch_size, seed, abs(epoch))
    seen = [index for batch in batches for index in batch]
    assert len(batches) == n // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(0, 10 * n, 10))


def test_an_epoch_that_divides_evenly_sees_every_image() -> None:
    assert sorted(sum(order_of(20, 4), [])) == list(range(0, 200, 10))


def test_the_images_left_out_change_from_epoch_to_epoch() -> None:
    seen = set()
    for epoch in range(20):
        seen |= set(sum(order_of(n=10, batch_size=8, epoch=epoch), []))
    assert len(seen) == 10


def test_the_uniform_order_is_numpys_permutation_of_the_indices() -> None:
    # As it was before there were others, so that runs from then can be reproduced.
    expected = np.random.default_rng([5, 2, 0]).permutation(np.arange(20) * 10)
    assert sum(order_of(20, 4, seed=5, epoch=2), []) == expected.tolist()


@pytest.fixture(params=SAMPLINGS)
def sampling(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_sampling_takes_as_many_steps_of_the_same_images(sampling: str) -> None:
    for n, batch_size in ((20, 4), (23, 5), (7, 7)):
        batches = order_of(n, batch_size, sampling=sampling)
        assert len(batches) == n // batch_size and {len(b) for b in batches} == {batch_size}
        assert set(sum(batches, [])) <= set(range(0, 10 * n, 10))


def test_the_same_seed_and_epoch_give_the_same_order(sampling: str) -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    one, two = (order_of(seed=5, epoch=2, sampling=sampling) for _ in range(2))
    assert one == two
    assert (before == np.random.get_state()[1]).all()


def test_another_seed_or_epoch_gives_another_order(sampling: str) -> None:
    orders = [
        order_of(seed=seed, epoch=epoch, sampling=sampling)
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len({str(order) for order in orders}) == 16


def test_every_sampling_is_a_choice_of_its_field_and_in_the_docs() -> None:
    (field,) = [f for f in fields(Config) if f.name == "sampling"]
    assert set(get_args(field.type)) == set(SAMPLINGS)
    page = Path(__file__).resolve().parents[2] / "docs/recipes.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in SAMPLINGS if f"`sampling={name}`" not in text] == []


# class_aware


def test_class_aware_takes_each_label_as_often_as_any_other() -> None:
    # 50 images have a, 8 have b, 2 have c and 3 none; no image has two.
    train = labels(list(range(50)), list(range(50, 58)), [58, 59], [], n=63)
    for epoch in range(5):
        came = Counter(places(train, epoch, sampling="class_aware"))
        assert [sum(came[i] for i in of) for of in (range(50), range(50, 58), (58, 59))] == [21] * 3
        assert not {60, 61, 62} & set(came)
        assert max(came[i] for i in range(50)) == 1
        assert {came[i] for i in range(50, 58)} == {2, 3}
        assert sorted(came[i] for i in (58, 59)) == [10, 11]


def test_class_aware_takes_an_image_in_the_turn_of_each_of_its_labels() -> None:
    train = labels([0, 1, 2, 3], [3], n=4)
    came = Counter(i for e in range(300) for i in places(train, e, sampling="class_aware"))
    assert came[3] / came.total() == pytest.approx(1 / 2 + 1 / 8, abs=0.02)


def test_class_aware_without_a_label_says_what_to_give() -> None:
    with pytest.raises(click.ClickException, match=r"train has none; give sampling=uniform$"):
        create_sampling(Config(sampling="class_aware"), labels([], [], n=5))


# repeat_factor


def test_repeat_factors_are_those_of_the_paper() -> None:
    # Of 100 images: all have the 1st label, 4 the 2nd, 1 the 3rd, none the 4th.
    train = labels(list(range(100)), [0, 1, 2, 3], [3], [], n=100)
    expected = np.ones(100)
    expected[:3] = 2  # sqrt(0.16 / 0.04)
    expected[3] = 4  # sqrt(0.16 / 0.01), the greater of its labels'
    np.testing.assert_allclose(repeat_factors(train, 0.16), expected)
    np.testing.assert_allclose(repeat_factors(labels([], n=3), 0.16), np.ones(3))


def test_an_unknown_label_counts_as_little_as_a_missing_one() -> None:
    known = np.random.default_rng(0).random((50, 2)) < 0.5
    known[:5] = True
    few = {"n": 50, "known": None}
    columns = ([0, 1], [2])
    for name in SAMPLINGS:
        one = places(labels(*columns, **few), sampling=name)
        assert one == places(labels(*columns, n=50, known=known), sampling=name)


def test_repeat_factor_takes_images_as_often_as_their_factors_on_average() -> None:
    # Factors of 3, 1.5 and 1.
    train = labels([0], [1, 2, 3, 4], n=40)
    threshold = 9 / 40
    np.testing.assert_allclose(repeat_factors(train, threshold)[[0, 1, 5]], [3, 1.5, 1])
    epochs = [
        Counter(places(train, e, sampling="repeat_factor", repeat_threshold=threshold))
        for e in range(600)
    ]
    came = sum(epochs, Counter())
    common = sum(came[i] for i in range(5, 40)) / 35
    assert came[0] / common == pytest.approx(3, rel=0.05)
    assert sum(came[i] for i in range(1, 5)) / 4 / common == pytest.approx(1.5, rel=0.05)
    assert {n for epoch in epochs for n in (epoch[1], epoch[2])} == {0, 1, 2}


def test_repeat_factor_takes_each_image_once_where_no_label_is_rare() -> None:
    train = labels(list(range(10)), list(range(5, 20)), n=20)
    assert sorted(places(train, sampling="repeat_factor")) == list(range(20))


# draw_rows


def test_an_image_that_comes_once_takes_its_own_row() -> None:
    order = np.random.default_rng(0).permutation(30)[:24].reshape(6, 4)
    assert (draw_rows(order, 30) == order).all()


@given(st.lists(st.integers(0, 9), max_size=10), st.integers(10, 12))
def test_an_image_that_comes_again_takes_another_row_each_time(came: list[int], n: int) -> None:
    rows = draw_rows(np.array(came, dtype=np.int64), n).tolist()
    assert len(set(zip(came, rows, strict=True))) == len(came)
    assert set(rows) <= set(range(n))


def test_rows_do_not_depend_on_what_comes_after() -> None:
    order = np.random.default_rng(0).integers(0, 5, (8, 4))
    assert (draw_rows(order, 40)[:3] == draw_rows(order[:3], 40)).all()
