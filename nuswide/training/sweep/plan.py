"""The file of a sweep: what is searched, how, and on top of which experiment.

Owns reading and checking, so that a mistake is found before any work. Runs nothing.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from nuswide.config import (
    Config,
    load_config,
    lookup,
    may_differ,
    unknown_name,
)
from nuswide.experiment_file import build_on, read_yaml
from nuswide.models.backbones import BACKBONES
from nuswide.models.heads import HEADS
from nuswide.models.losses import LOSSES
from nuswide.models.optim import OPTIMIZERS, SCHEDULES

Value = str | int | float | bool
Params = dict[str, Value]

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "halving", "hyperband")
_KEYS = ("experiment", "sampler", "pruner", "trials", "seed", "heartbeat_s", "search")
_RANGE_KEYS = ("low", "high", "log", "points")
_TRIALS = 20
_MOST_CORNERS = 4096  # combinations of extreme values that are tried on Config
_DIGITS = 4  # of a drawn value: what can be read, and typed again
_NAMES: Mapping[str, Mapping[str, Any]] = {
    "backbone": BACKBONES, "head": HEADS, "loss": LOSSES, "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}  # fmt: skip


@dataclass(frozen=True)
class Dimension:
    """What one field may be: one of `values`, or, without these, anything from low to high."""

    name: str
    values: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    is_whole: bool = False

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.values:
            return len(self.values)
        return self.high - self.low + 1 if self.is_whole else math.inf

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that are most likely to be refused."""
        return self.values or (self.low, self.high)

    def at(self, share: float) -> Value:
        """The value at a share of the way, from 0 to 1 exclusive."""
        if self.values:
            return self.values[int(share * len(self.values))]
        wider = 0.5 if self.is_whole else 0.0  # so that the ends are as likely as the rest
        low, high = self.low - wider, self.high + wider
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return self.rounded(value)

    def share_of(self, value: Value) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        if self.values:
            return self.values.index(value) / max(1, len(self.values) - 1)
        number = float(value)
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def rounded(self, value: Any) -> Value:
        """A value in few digits, and still between the ends."""
        if self.values:
            return value
        number = round(value) if self.is_whole else float(f"{value:.{_DIGITS}g}")
        return min(max(number, self.low), self.high)

    def __str__(self) -> str:
        if self.values:
            return ", ".join(map(str, self.values))
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Plan:
    """A checked sweep. base: fields of the experiment that it searches on top of."""

    base: Mapping[str, Any]
    search: tuple[Dimension, ...]
    sampler: str
    pruner: str
    trials: int
    seed: int
    heartbeat_s: int

    @property
    def size(self) -> float:
        """How many combinations there are."""
        return math.prod(dimension.size for dimension in self.search)

    @property
    def corner(self) -> Params:
        """The first of all values together."""
        return {dimension.name: dimension.ends[0] for dimension in self.search}

    def config(self, params: Mapping[str, Value]) -> Config:
        """The configuration of a trial, as an experiment of its own."""
        return load_config(None, {**self.base, **params})

    def changed(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """The fields of a trial that are not the default."""
        config = asdict(self.config(params))
        return {f.name: config[f.name] for f in fields(Config) if config[f.name] != f.default}

    def describe(self) -> dict[str, str]:
        """What must be the same for all workers, and whenever the study is gone on with."""
        own = {k: str(getattr(self, k)) for k in ("sampler", "pruner", "seed", "heartbeat_s")}
        own |= {f"search {d.name}": str(d) for d in self.search}
        same = self.changed(self.corner).items()
        return own | {
            k: str(v) for k, v in same if k not in may_differ("resume") and k not in self.corner
        }


def read_plan(path: Path, overrides: Mapping[str, str], *, trials: int | None) -> Plan:
    """Read a file of experiments/sweeps/ and check it whole.

    overrides: fields, which win over the experiment's. trials: in place of the file's. Raises
    click.UsageError naming what is wrong and what is allowed.
    """
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise click.UsageError(f"{path}: {unknown_name('key', key, dict.fromkeys(_KEYS))}")
    experiment = content.get("experiment", {})
    fields_or_name = experiment if isinstance(experiment, dict) else {"experiment": experiment}
    base = {**build_on(fields_or_name, path), **overrides}
    search = content.get("search")
    if not isinstance(search, dict) or not search:
        raise click.UsageError(f"{path} needs `search`, with a line for each field to search")
    for name in search:
        if name in overrides:
            raise click.UsageError(f"{name} is searched, and given as an option; take one away")
    sampler = _one_of("sampler", content.get("sampler", "tpe"), SAMPLERS)
    dimensions = tuple(_read_dimension(name, what, base, sampler) for name, what in search.items())
    size = math.prod(dimension.size for dimension in dimensions)
    usual = int(min(size, math.inf if sampler == "grid" else _TRIALS))
    plan = Plan(
        base,
        dimensions,
        sampler,
        _one_of("pruner", content.get("pruner", "none"), PRUNERS),
        trials or _whole("trials", content.get("trials", usual), at_least=1),
        _whole("seed", content.get("seed", 0), at_least=0),
        _whole("heartbeat_s", content.get("heartbeat_s", 30), at_least=1),
    )
    _check(plan)
    return plan


def _read_dimension(name: str, what: Any, base: Mapping[str, Any], sampler: str) -> Dimension:
    known = {f.name: f for f in fields(Config)}
    if name not in known:
        raise click.UsageError(unknown_name("field", name, known))
    if name not in may_differ("sweep"):
        raise click.UsageError(
            f"{name} can't be searched: trials of other val images or records can't be compared"
        )

    def typed(value: Any) -> Value:
        """A value as the field's type; raises click.UsageError if it is out of range."""
        return getattr(load_config(None, {**base, name: value}), name)

    if isinstance(what, list) and what:
        values = tuple(typed(value) for value in what)
        if len(set(values)) < len(values):
            raise click.UsageError(f"{name} has a value twice: {', '.join(map(str, values))}")
        return Dimension(name, values)
    if not isinstance(what, dict) or not {"low", "high"} <= what.keys():
        raise click.UsageError(
            f"{name} needs a list of values, or a range like {{low: 1e-5, high: 1e-2, log: true}}"
        )
    for key in what:
        if key not in _RANGE_KEYS:
            raise click.UsageError(unknown_name(f"key of {name}", key, dict.fromkeys(_RANGE_KEYS)))
    if known[name].type not in (int, float):
        raise click.UsageError(f"{name} is no number and has no range; give a list of values")
    low, high = typed(what["low"]), typed(what["high"])
    read = _read_range(name, float(low), float(high), what, known[name].type is int, sampler)
    if read.is_whole:
        try:  # the number beside low, which is of those that only some fields take, such as 0
            typed(int(read.low) + 1)
        except click.UsageError as error:
            raise click.UsageError(
                f"{name} cannot be all of {read}: {error.message}; give a list of values"
            ) from error
    return read


def _read_range(
    name: str, low: float, high: float, what: Mapping[str, Any], is_whole: bool, sampler: str
) -> Dimension:
    log = what.get("log", False)
    if not isinstance(log, bool):
        raise click.UsageError(f"log of {name} is {log!r}; give true or false")
    if low >= high:
        raise click.UsageError(f"{name} goes from low={low:g} to high={high:g}; swap or part them")
    if log and low <= 0:
        raise click.UsageError(f"{name} has log: true, so that low={low:g} must be above 0")
    if is_whole:
        low, high = int(low), int(high)
    dimension = Dimension(name, (), low, high, log, is_whole)
    if sampler != "grid":
        if "points" in what:
            raise click.UsageError(f"points of {name} are for sampler: grid; leave them out")
        return dimension
    if "points" not in what:
        raise click.UsageError(
            f"{name} is a range, of which a grid needs points (so many values), or give a list"
        )
    points = _whole(f"points of {name}", what["points"], at_least=2)
    shares = [i / (points - 1) for i in range(points)]
    numbers = [low * (high / low) ** s if log else low + s * (high - low) for s in shares]
    return Dimension(name, tuple(dict.fromkeys(dimension.rounded(n) for n in numbers)))


def _check(plan: Plan) -> None:
    """Try the names, and the extremes together: fields that contradict each other do so there."""
    if plan.trials > plan.size:
        raise click.UsageError(
            f"trials={plan.trials}, but there are {plan.size:.0f} combinations; lower it, or "
            "search more"
        )
    for dimension in plan.search:
        names = _NAMES.get(dimension.name)
        for value in dimension.values if names else ():
            if not str(value).startswith("timm/"):
                lookup(names or {}, dimension.name, str(value))
    corners = itertools.product(*(dimension.ends for dimension in plan.search))
    for corner in itertools.islice(corners, _MOST_CORNERS):
        config = plan.config(dict(zip((d.name for d in plan.search), corner, strict=True)))
        if config.val_fraction == 0:
            raise click.UsageError("a sweep chooses on val; give val_fraction=0.15")
        if config.select_on == "test":
            raise click.UsageError("a sweep must not see test; give select_on=val")


def _one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise click.UsageError(unknown_name(key, str(value), dict.fromkeys(known)))
    return str(value)


def _whole(key: str, value: Any, *, at_least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise click.UsageError(f"{key}={value!r} must be a whole number, at least {at_least}")
    return value
