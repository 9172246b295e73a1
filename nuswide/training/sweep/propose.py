"""The params of a trial, by its index in the study; no two trials have the same.

Owns the samplers. Optuna's own grid may repeat a point near its end, and its samplers with one seed
return the same draws to all workers. Here the params of a trial follow from the plan's seed, the
trial's index and, for TPE, the trials so far. Reads no storage.
"""

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from nuswide.training.sweep.plan import Dimension, Params, Plan

_MOST_TPE_DRAWS = 50  # until one is new


def propose(plan: Plan, index: int, trials: Sequence[FrozenTrial]) -> Params:
    """Return the params of the trial at an index. trials: all other trials that have params."""
    if plan.sampler == "grid":
        return _grid_point(plan, index)
    if plan.sampler == "random":
        return next(itertools.islice(_drawn(plan), index, None))
    return _by_tpe(plan, index, trials)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return a dimension as a distribution of Optuna."""
    if dimension.values:
        return CategoricalDistribution(list(dimension.values))
    if dimension.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _grid_point(plan: Plan, index: int) -> Params:
    """Return a point of the shuffled grid, so that its first points are spread over all of it."""
    shape = [len(dimension.values) for dimension in plan.search]
    order = np.random.default_rng(plan.seed).permutation(int(plan.size))
    indices = np.unravel_index(int(order[index]), shape)
    return {d.name: d.values[int(i)] for d, i in zip(plan.search, indices, strict=True)}


def _drawn(plan: Plan) -> Iterator[Params]:
    """Yield uniform draws without repetition."""
    random, seen = np.random.default_rng(plan.seed), set()
    while True:
        shares = random.random(len(plan.search))
        params = {d.name: d.at(float(s)) for d, s in zip(plan.search, shares, strict=True)}
        if (key := key_of(params)) not in seen:
            seen.add(key)
            yield params


def _by_tpe(plan: Plan, index: int, trials: Sequence[FrozenTrial]) -> Params:
    """Return a suggestion of Optuna's TPE from the trials so far; running ones count as bad.

    Source: Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127.
    """
    seed = int(np.random.SeedSequence([plan.seed, index]).generate_state(1)[0])
    startup = max(3, min(10, plan.trials // 4))
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=startup, constant_liar=True, seed=seed % 2**32
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    names = {dimension.name for dimension in plan.search}
    study.add_trials([trial for trial in trials if set(trial.params) == names])
    taken = {key_of(trial.user_attrs["params"]) for trial in trials}
    distributions = {d.name: distribution(d) for d in plan.search}
    for _ in range(_MOST_TPE_DRAWS):
        asked = study.ask(distributions).params
        params = {d.name: d.rounded(asked[d.name]) for d in plan.search}
        if key_of(params) not in taken:
            return params
    # Most of a small space is taken. A plan has no more trials than there are combinations.
    return next(params for params in _drawn(plan) if key_of(params) not in taken)


def key_of(params: Params) -> str:
    """Return a text that is the same for the same params."""
    return json.dumps(params, sort_keys=True)
