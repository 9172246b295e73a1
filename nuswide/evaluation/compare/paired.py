"""The statistics of a comparison: metrics with intervals, and paired differences.

Owns measure() and the way seeds enter an interval. One entrant's scores are in memory at a time,
beside the baseline's.

What the intervals are about. Of single runs: these models, on other images. Where both sides have
several seeds: the recipes, on other images and with other seeds. The variance of a mean over seeds,
s^2/n, then adds to that over images, and the interval has the t distribution's width for the
degrees of freedom of Satterthwaite 1946, doi:10.2307/3002019. (What seed and image do together is
in both parts, so that the interval is a little too wide rather than too narrow.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from tqdm import tqdm

from nuswide.evaluation.compare.entrants import Entrant
from nuswide.metrics.bootstrap import (
    HEADLINE,
    Z_95,
    Difference,
    Resampled,
    holm,
    mean_of,
    paired,
    paired_labels,
    resample,
)
from nuswide.tracking import reader
from nuswide.tracking.score_file import SavedScores

COMPARED = tuple(name for name in HEADLINE if name != "of1")  # which is micro/f1
ALPHA = 0.05
_NO_DOUBT = 1e9  # degrees of freedom of what is normal
_SPLIT = "test"
_CLOSE = 1e-4

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A metric, its mean over seeds, with its 95 % interval; NaN where there is none.

    deviation: between the seeds.
    """

    value: float
    low: float
    high: float
    deviation: float


class Compared(NamedTuple):
    """The difference of a metric from the baseline's; corrected: the p-value by Holm's method."""

    value: float
    low: float
    high: float
    p_value: float
    corrected: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the corrected p-value says so, else `tie`; high is better.

        `unknown` if there are too few positives to say.
        """
        if np.isnan(self.corrected):
            return "unknown"
        if self.corrected > ALPHA or self.low <= 0 <= self.high:
            return "tie"
        return "better" if self.low > 0 else "worse"


@dataclass(frozen=True)
class Result:
    """An entrant's metrics; differences from the baseline's, and of each label's AP, if paired."""

    estimates: dict[str, Estimate]
    differences: dict[str, Compared] | None = None
    labels: tuple[Compared, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. The baseline, if there is one, is the first of the entrants.

    positives: (C,) of each label on test. remarks: caveats for the reader.
    """

    entrants: tuple[Entrant, ...]
    results: tuple[Result, ...]
    baseline: str | None
    why_baseline: str
    n_images: int
    labels: tuple[str, ...]
    positives: NDArray[np.int64]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Pool:
    """The seeds of an entrant: their mean, resampled, and each one's metrics (S, F), APs (S, C)."""

    mean: Resampled
    metrics: Floats
    label_ap: Floats


def measure(
    entrants: Sequence[Entrant], baseline: tuple[int | None, str], *, is_paired: bool
) -> Comparison:
    """Compute metrics, intervals and differences from the entrants' recorded scores.

    baseline: its index, and why it is that. is_paired: all were tested on the same images.
    """
    index, why = baseline
    if not is_paired:
        why = "the test images differ"
    ordered = _ordered(entrants, index)
    base, like = None, None
    raw: list[tuple[list[Difference], list[Difference]] | None] = []
    results: list[Result] = []
    remarks: list[str] = []
    for entrant in tqdm(ordered, "comparing", unit="entrant", leave=False):
        if not entrant.has_scores:
            results.append(Result(_recorded(entrant)))
            raw.append(None)
            continue
        pool, saved = _pool(entrant, like if is_paired else None, remarks)
        results.append(Result(_estimates(pool)))
        raw.append(_differences(pool, base) if base and is_paired else None)
        if base is None:
            base, like = pool, saved
    corrected = _corrected(results, raw)
    has_baseline = index is not None and is_paired
    return Comparison(
        tuple(ordered), tuple(corrected), ordered[0].name if has_baseline else None, why,
        len(like.images) if like and is_paired else 0, like.labels if like else (),
        _positives(like), (*remarks, *_remarks(ordered, is_paired=is_paired)),
    )  # fmt: skip


def _ordered(entrants: Sequence[Entrant], baseline: int | None) -> list[Entrant]:
    """Sort the baseline first, then by mAP on val, so that test does not rank."""

    def rank(i: int) -> tuple[bool, float]:
        value = entrants[i].mean("val/map")
        return i != baseline, -value if value is not None else np.inf

    return [entrants[i] for i in sorted(range(len(entrants)), key=rank)]


def _positives(saved: SavedScores | None) -> NDArray[np.int64]:
    if saved is None or saved.targets is None:
        return np.zeros(0, dtype=np.int64)
    true = saved.targets > 0
    return (true if saved.known is None else true & saved.known).sum(axis=0)


def _pool(
    entrant: Entrant, like: SavedScores | None, remarks: list[str]
) -> tuple[_Pool, SavedScores]:
    """Resample the scores of each of an entrant's runs, in the order of another's images."""
    seeds = []
    for run in entrant.runs:
        saved = reader.fetch_scores(run.info.run_id, _SPLIT)
        assert saved is not None and saved.targets is not None and saved.thresholds is not None
        if like is not None:
            try:
                saved = reader.align(saved, like)
            except click.ClickException as error:
                raise click.ClickException(f"run {run.info.run_id}: {error.message}") from error
        like = like or saved
        assert saved.targets is not None and saved.thresholds is not None
        seeds.append(resample(saved.targets, saved.scores, saved.thresholds, saved.known))
        told, found = run.data.metrics.get(f"{_SPLIT}/map"), seeds[-1].metrics[0]
        if told is not None and abs(told - found) > _CLOSE:
            remarks.append(
                f"Run {run.info.run_id[:8]} recorded a test mAP of {told:.4f}; its scores give "
                f"{found:.4f}, which is shown here."
            )
    metrics, label_ap = (np.stack([getattr(s, n) for s in seeds]) for n in ("metrics", "label_ap"))
    assert like is not None
    return _Pool(mean_of(seeds), metrics, label_ap), like


def _estimates(pool: _Pool) -> dict[str, Estimate]:
    around = [
        Difference(value, low, high, np.nan)
        for value, (low, high) in zip(
            pool.mean.metrics.tolist(), pool.mean.bounds().tolist(), strict=True
        )
    ]
    widened = _with_seeds(around, [pool.metrics])
    n_seeds = len(pool.metrics)
    deviations = pool.metrics.std(axis=0, ddof=1) if n_seeds > 1 else np.full(len(around), np.nan)
    found = {}
    for name, value, deviation in zip(HEADLINE, widened, deviations.tolist(), strict=True):
        if name in COMPARED:
            low, high = np.clip([value.low, value.high], 0, 1).tolist()
            found[name] = Estimate(value.value, low, high, deviation)
    return found


def _recorded(entrant: Entrant) -> dict[str, Estimate]:
    """Return the recorded metrics of runs that kept no scores."""
    found = {}
    for name in COMPARED:
        values = entrant.values(f"{_SPLIT}/{name}")
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        if values:
            found[name] = Estimate(float(np.mean(values)), np.nan, np.nan, deviation)
    return found


def _differences(pool: _Pool, base: _Pool) -> tuple[list[Difference], list[Difference]]:
    """Return the differences of the metrics, and of each label's average precision."""
    found = paired(pool.mean, base.mean)
    metrics = [found[name] for name in COMPARED]
    shown = [HEADLINE.index(name) for name in COMPARED]
    labels = paired_labels(pool.mean, base.mean)
    return (
        _with_seeds(metrics, [pool.metrics[:, shown], base.metrics[:, shown]]),
        _with_seeds(labels, [pool.label_ap, base.label_ap]),
    )


def _with_seeds(found: Sequence[Difference], sides: Sequence[Floats]) -> list[Difference]:
    """Add the variance between seeds to that between images, if all sides have several seeds.

    sides: for each, (S, K) of its seeds.
    """
    if any(len(side) < 2 for side in sides):
        return list(found)
    low, high = (np.array([getattr(d, name) for d in found]) for name in ("low", "high"))
    centre, images = (low + high) / 2, ((high - low) / 2 / Z_95) ** 2
    terms = np.stack([side.var(axis=0, ddof=1) / len(side) for side in sides])
    total = images + terms.sum(axis=0)
    free = np.array([[len(side) - 1] for side in sides])
    doubt = (terms**2 / free).sum(axis=0)
    freedom = np.minimum(total**2 / np.where(doubt > 0, doubt, np.nan), _NO_DOUBT)
    freedom = np.where(doubt > 0, freedom, _NO_DOUBT)
    margin = stdtrit(freedom, 0.975) * np.sqrt(total)
    distance = np.abs(centre) / np.sqrt(np.where(total > 0, total, np.where(centre == 0, 1, 0)))
    p_values = 2 * stdtr(freedom, -distance)
    rows = zip(found, centre - margin, centre + margin, p_values, strict=True)
    return [Difference(d.value, *map(float, rest)) for d, *rest in rows]


def _corrected(
    results: Sequence[Result],
    raw: Sequence[tuple[list[Difference], list[Difference]] | None],
) -> list[Result]:
    """Correct the p-values of all metrics together, and of all labels together."""
    metrics, labels = (
        iter(holm([d.p_value for pair in raw if pair for d in pair[kind]])) for kind in (0, 1)
    )
    corrected = []
    for result, pair in zip(results, raw, strict=True):
        if pair:
            values = [Compared(*d, next(metrics)) for d in pair[0]]
            differences = dict(zip(COMPARED, values, strict=True))
            by_label = tuple(Compared(*d, next(labels)) for d in pair[1])
            result = Result(result.estimates, differences, by_label)
        corrected.append(result)
    return corrected


def _remarks(entrants: Sequence[Entrant], *, is_paired: bool) -> list[str]:
    remarks = []
    if not is_paired:
        remarks.append("The test images differ: the metrics are not directly comparable.")
    if without := [entrant.name for entrant in entrants if not entrant.has_scores]:
        remarks.append(
            f"No scores were kept by {', '.join(without)}: their metrics are shown as recorded, "
            "without intervals and unpaired."
        )
    if any(r.data.params.get("select_on") == "test" for e in entrants for r in e.runs):
        remarks.append(
            "Runs with select_on=test chose their weights on test: their metrics are too good."
        )
    if any(len(e.runs) == 1 for e in entrants if e.has_scores):
        remarks.append(
            "The interval of a single run is about that model on other images. It does not include "
            "the variance over seeds."
        )
    digests = {r.data.tags.get("data.val_digest") for e in entrants for r in e.runs}
    if len(digests - {None}) > 1:
        remarks.append("The val images differ, so metrics on val are not comparable.")
    return remarks
