"""The entrants of a comparison.

Owns the resolution of names to entrants, the pooling of seeds, and the choice of a baseline. Reads
no scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np

from nuswide.config import Config, may_differ, with_defaults
from nuswide.core.wording import counted
from nuswide.tracking import reader, registry
from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.run import JOB_TAG

COSTS = ("train/images_per_s", "train/seconds", "model.parameters")
_SPLIT = "test"
_MOST_SHOWN = 6  # values of a param within an entrant


@dataclass(frozen=True)
class Entrant:
    """One side of the comparison: a run, a registered version, or runs that differ in the seed.

    given: what the user named it by. has_scores: its runs kept their scores on test.
    """

    name: str
    runs: tuple[RecordedRun, ...]
    given: frozenset[str]
    has_scores: bool

    @property
    def digest(self) -> str:
        """Return the digest of the test images and their targets."""
        return str(self.runs[0].data.tags.get(f"data.{_SPLIT}_digest", "unknown"))

    @property
    def params(self) -> dict[str, str]:
        """Return each param, the values of several runs separated by commas."""
        found = [_params_of(run) for run in self.runs]
        keys = sorted({key for own in found for key in own})
        return {key: _joined([own.get(key, "") for own in found]) for key in keys}

    def values(self, key: str) -> list[float]:
        """Return a metric of each run that has it; costs may also be params or tags."""
        sources = [(r.data.metrics, r.data.params, r.data.tags) for r in self.runs]
        found = (next((s[key] for s in three if key in s), None) for three in sources)
        return [float(value) for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """Return the mean of a metric over the runs; None unless all have it."""
        values = self.values(key)
        return float(np.mean(values)) if len(values) == len(self.runs) else None


def _params_of(run: RecordedRun) -> Mapping[str, str]:
    """Return the params of a run; of training also the fields that were added since."""
    own: dict[str, str] = run.data.params
    is_training = run.data.tags.get(JOB_TAG) == "train" and "seed" in own
    if not is_training:
        return own
    # Before split_seed existed, seed drew the val split, too; such seeds are pooled all the same.
    split_seed = own.get("split_seed", Config.split_seed)
    return {k: str(v) for k, v in (with_defaults(own) | {"split_seed": split_seed}).items()}


def _joined(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    more = f", … ({len(different)})" if len(different) > _MOST_SHOWN else ""
    return ", ".join(different[:_MOST_SHOWN]) + more


def find_entrants(runs: str, *, pool_seeds: bool) -> list[Entrant]:
    """Fetch the entrants that a user named; raises click.ClickException if fewer than two.

    runs: IDs, MLflow experiments and models:/ addresses, separated by commas.
    """
    whole = [runs] if reader.find_experiment(runs) else runs.split(",")
    found: dict[str, Entrant] = {}
    for item in filter(None, (part.strip() for part in whole)):
        for entrant in _resolve(item):
            known = found.setdefault(entrant.runs[0].info.run_id, entrant)
            given = known.given | entrant.given
            found[entrant.runs[0].info.run_id] = replace(known, given=given)
    entrants = _pool(list(found.values())) if pool_seeds else list(found.values())
    if len(entrants) < 2:
        pooled = f", seeds of one recipe ({len(found)})" if len(found) > 1 else ""
        raise click.ClickException(
            f"runs={runs} names {counted(len(entrants), 'finished run')} with metrics on "
            f"test{pooled}, and a comparison needs two; give ID,ID or the name of an MLflow "
            "experiment with two" + (", or pool_seeds=false to compare the seeds" if pooled else "")
        )
    return _with_names(entrants)


def _resolve(item: str) -> list[Entrant]:
    if item.startswith("models:/"):
        return [_version(item)]
    if experiment := reader.find_experiment(item):
        query = f"tags.`{JOB_TAG}` = 'train' and attributes.status = 'FINISHED'"
        found = reader.search_runs([experiment], query)
        return [_of_run(run, item) for run in found if _is_tested(run)]
    if (run := reader.find_run(item)) is None:
        raise click.ClickException(
            f"there is no run and no MLflow experiment {item!r}; experiments: "
            f"{', '.join(reader.experiment_names())}"
        )
    if run.info.status != "FINISHED" or not _is_tested(run):
        raise click.ClickException(
            f"run {item} is no finished run with metrics on test; leave it out"
        )
    return [_of_run(run, item)]


def _is_tested(run: RecordedRun) -> bool:
    return f"{_SPLIT}/map" in run.data.metrics


def _of_run(run: RecordedRun, given: str) -> Entrant:
    has_scores = reader.has_scores(run.info.run_id, _SPLIT)
    return Entrant(str(run.info.run_name), (run,), frozenset([given, run.info.run_id]), has_scores)


def _version(uri: str) -> Entrant:
    """Return a version by its training run, or by an evaluation if only that kept scores."""
    version = registry.find_version(uri)
    name = f"{version.name}/{version.version}"
    own = reader.training_run(version)
    runs = [run for run in (own, *reader.evaluations(version)) if run and _is_tested(run)]
    if not runs:
        raise click.ClickException(
            f"{uri} has no metrics on test; make them with `nuswide evaluate --model "
            f"{uri} --data DIR`"
        )
    predictions = (run for run in runs if reader.has_scores(run.info.run_id, _SPLIT))
    entrant = _of_run(next(predictions, runs[0]), uri)
    return replace(entrant, name=name, given=entrant.given | {f"models:/{name}"})


def _pool(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Pool training runs of one recipe into one entrant; of a repeated seed, keep the latest."""
    groups: dict[object, dict[str, Entrant]] = {}
    for entrant in sorted(entrants, key=lambda e: e.runs[0].info.start_time):
        seeds = groups.setdefault(_recipe(entrant), {})
        seed = entrant.runs[0].data.params.get("seed", "")
        if seed in seeds:
            click.echo(
                f"run {seeds[seed].runs[0].info.run_id} is left out: a later run has its recipe "
                f"and its seed {seed}; pool_seeds=false keeps both"
            )
        seeds[seed] = entrant
    pooled = []
    for seeds in groups.values():
        members = list(seeds.values())
        given = frozenset[str]().union(*(member.given for member in members))
        runs = tuple(member.runs[0] for member in members)
        pooled.append(replace(members[0], runs=runs, given=given))
    return pooled


def _recipe(entrant: Entrant) -> object:
    """Return what pooled entrants have in common; registered versions are never pooled."""
    run = entrant.runs[0]
    is_version = any(given.startswith("models:/") for given in entrant.given)
    if is_version or run.data.tags.get(JOB_TAG) != "train" or "seed" not in run.data.params:
        return run.info.run_id
    # `mlflow run` records the experiment file too, whose fields are params of their own.
    ignored = may_differ("compare") | {"experiment"}
    params = {k: as_number(v) for k, v in _params_of(run).items() if k not in ignored}
    data = run.data.tags.get("data.digest"), entrant.digest, entrant.has_scores
    return tuple(sorted(params.items(), key=lambda item: item[0])), data


def as_number(cell: str) -> float | str:
    """Convert a param to a number if it is one: 1e-4 and 0.0001 are the same."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _with_names(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Shorten names like `train data=x lr=1 seed=2` to the words that differ, each unique."""
    words = [entrant.name.split() for entrant in entrants]
    common = set.intersection(*(set(own) for own in words))
    named = []
    for entrant, own in zip(entrants, words, strict=True):
        is_pooled = len(entrant.runs) > 1
        kept = [
            word
            for word in own
            if "=" not in word
            or not (word in common or (is_pooled and word.split("=")[0] in may_differ("compare")))
        ]
        named.append(replace(entrant, name=" ".join(kept or own)))
    names = [entrant.name for entrant in named]
    return [
        replace(e, name=f"{e.name} ({e.runs[0].info.run_id[:6]})") if names.count(e.name) > 1 else e
        for e in named
    ]


def require_one_test_set(entrants: Sequence[Entrant], *, across_test_sets: bool) -> bool:
    """Return whether all were tested on the same images.

    Raises click.ClickException if they were not, unless across_test_sets allows it.
    """
    sets: dict[str, list[str]] = {}
    for entrant in entrants:
        sets.setdefault(entrant.digest, []).append(entrant.runs[0].info.run_id[:8])
    if len(sets) > 1 and not across_test_sets:
        listed = "; ".join(f"{digest}: {', '.join(ids[:5])}" for digest, ids in sets.items())
        raise click.ClickException(
            f"these were tested on different images (digest: runs): {listed}; give those of one "
            "test set, or across_test_sets=true to see them side by side, unpaired"
        )
    return len(sets) == 1


def choose_baseline(entrants: Sequence[Entrant], wanted: str | None) -> tuple[int | None, str]:
    """Return the index of the baseline, or None, and why it was chosen.

    Raises click.ClickException if the wanted one is missing or kept no scores.
    """
    if wanted:
        indices = [i for i, e in enumerate(entrants) if _is_meant(e, wanted)]
        if len(indices) != 1:
            names = ", ".join(e.name for e in entrants)
            raise click.ClickException(
                f"baseline={wanted} is {len(indices) or 'none'} of those compared; name one of "
                f"them by its run's ID or its models:/ address: {names}"
            )
        if not entrants[indices[0]].has_scores:
            raise click.ClickException(
                f"baseline={wanted} kept no scores on test, and nothing can be paired with it; "
                "name another"
            )
        return indices[0], "as given"
    predictions = [i for i, entrant in enumerate(entrants) if entrant.has_scores]
    values: Mapping[int, float | None] = {i: entrants[i].mean("val/map") for i in predictions}
    known = {i: value for i, value in values.items() if value is not None}
    if known:
        return max(known, key=lambda i: known[i]), "the highest mAP on val"
    return (predictions[0], "the first given") if predictions else (None, "none kept its scores")


def _is_meant(entrant: Entrant, wanted: str) -> bool:
    ids = {run.info.run_id for run in entrant.runs}
    is_start = len(wanted) >= 6 and any(run_id.startswith(wanted) for run_id in ids)
    return wanted in entrant.given or wanted == entrant.name or is_start
