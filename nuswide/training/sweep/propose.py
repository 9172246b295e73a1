"""What a trial tries: for each place in a study, params that no other place has.

Owns the samplers. Optuna's own grid may hand out a point twice near its end, and its samplers with
one seed give all workers the same draws; here a place's params depend on the plan's seed, the place
and, for TPE, on what has been tried. Asks no storage.

    params = propose(plan, place=3, trials=study.get_trials())
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

_ASKED = 50  # times that TPE is asked for something new


def propose(plan: Plan, place: int, trials: Sequence[FrozenTrial]) -> Params:
    """The params of a place. trials: those of all other places that have params."""
    if plan.sampler == "grid":
        return _grid_point(plan, place)
    if plan.sampler == "random":
        return next(itertools.islice(_drawn(plan), place, None))
    return _by_tpe(plan, place, trials)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    if dimension.values:
        return CategoricalDistribution(list(dimension.values))
    if dimension.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _grid_point(plan: Plan, place: int) -> Params:
    """The grid in an order that the seed shuffles, so that its first points are a fair part."""
    shape = [len(dimension.values) for dimension in plan.search]
    order = np.random.default_rng(plan.seed).permutation(int(plan.size))
    indices = np.unravel_index(int(order[place]), shape)
    return {d.name: d.values[int(i)] for d, i in zip(plan.search, indices, strict=True)}


def _drawn(plan: Plan) -> Iterator[Params]:
    """Uniform draws, each once."""
    random, seen = np.random.default_rng(plan.seed), set()
    while True:
        shares = random.random(len(plan.search))
        params = {d.name: d.at(float(s)) for d, s in zip(plan.search, shares, strict=True)}
        if (key := key_of(params)) not in seen:
            seen.add(key)
            yield params


def _by_tpe(plan: Plan, place: int, trials: Sequence[FrozenTrial]) -> Params:
    """What Optuna's TPE suggests in view of the trials, those that run counted as bad.

    Source: Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127.
    """
    seed = int(np.random.SeedSequence([plan.seed, place]).generate_state(1)[0])
    startup = max(3, min(10, plan.trials // 4))
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=startup, constant_liar=True, seed=seed % 2**32
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    names = {dimension.name for dimension in plan.search}
    study.add_trials([trial for trial in trials if set(trial.params) == names])
    taken = {key_of(trial.user_attrs["params"]) for trial in trials}
    distributions = {d.name: distribution(d) for d in plan.search}
    for _ in range(_ASKED):
        asked = study.ask(distributions).params
        params = {d.name: d.rounded(asked[d.name]) for d in plan.search}
        if key_of(params) not in taken:
            return params
    # A small space of which much is taken: a plan has no more trials than combinations.
    return next(params for params in _drawn(plan) if key_of(params) not in taken)


def key_of(params: Params) -> str:
    """The same text for the same params."""
    return json.dumps(params, sort_keys=True)
