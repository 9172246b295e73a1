"""Promotion to champion by a contest on val, and rollback.

Owns the rule and its verdict, and what is recorded of it. Never looks at test: it is for the
report, and a champion chosen on it would make its metrics there too good.

With no true difference between the two, `better` should be wrong in 2.5 % of contests: the interval
of the paired difference has 95 %, and only one of its two ends can move the alias. Simulated, it is
3 % (benchmarks/promotion.py). That is for each contest: of 40 challengers that are no better, one
is expected to win.
"""

import math
import random
import time
from dataclasses import dataclass
from itertools import chain

import click

from nuswide.core.wording import counted
from nuswide.metrics.bootstrap import HEADLINE, Difference, paired, resample
from nuswide.tracking import reader, registry
from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.registry import CHAMPION, ChampionMoved, ModelVersion, address_of
from nuswide.tracking.score_file import SavedScores

_VERBS = {  # by rule, of who lost and of who won
    "better": ("did not beat", "beat"),
    "not_worse": ("was not shown to be about as good as", "was shown to be about as good as"),
}
RULES = tuple(_VERBS)
_ATTEMPTS = 6  # ... while other processes move the alias


@dataclass(frozen=True)
class Rule:
    """The rule by which a challenger becomes champion.

    figure: one of HEADLINE. rule: `better`, the whole 95 % interval of the paired difference is
    above margin; `not_worse`, it is above -margin.
    """

    figure: str = "map"
    rule: str = "better"
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("figure", HEADLINE), ("rule", RULES)):
            if (value := getattr(self, name)) not in allowed:
                raise click.UsageError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        if not 0 <= self.margin < 1:
            raise click.UsageError(f"margin={self.margin} must be at least 0 and below 1")


@dataclass(frozen=True)
class Verdict:
    """The result of a contest. difference: the challenger's metric less the champion's."""

    rule: Rule
    difference: Difference
    n_images: int

    @property
    def wins(self) -> bool:
        """Whether the challenger becomes champion."""
        bound = self.rule.margin if self.rule.rule == "better" else -self.rule.margin
        return self.difference.low > bound  # NaN is not

    def __str__(self) -> str:
        value, low, high, p_value = self.difference
        p = "p < 0.0001" if p_value < 0.0001 else f"p {p_value:.4f}"
        interval = f"[{low:+.4f}, {high:+.4f}], {p}"
        if math.isnan(low):
            interval = "with too few positives for an interval"
        return (
            f"{self.rule.figure} {value:+.4f} {interval}, on "
            f"{counted(self.n_images, 'val image')}; rule {self.rule.rule}, "
            f"margin {self.rule.margin:g}"
        )


def decide(challenger: SavedScores, champion: SavedScores, rule: Rule) -> Verdict:
    """Hold a contest on the same val images.

    Raises click.ClickException if images, labels or truth are not the same.
    """
    pair = reader.align(challenger, champion), champion
    resampled = []
    for saved in pair:
        assert saved.targets is not None and saved.thresholds is not None
        resampled.append(resample(saved.targets, saved.scores, saved.thresholds, saved.known))
    return Verdict(rule, paired(*resampled)[rule.figure], len(champion.images))


def promote(model: str, rule: Rule) -> str:
    """Make a version champion if it wins the contest; return the outcome in words.

    The first champion needs no contest, nor does the successor of one whose metrics on val are
    undefined. Raises click.ClickException if there can't be one, as with no val split, or another
    one, and for a version whose metrics are undefined.
    """
    version = registry.find_version(model)
    for _ in range(_ATTEMPTS):
        champion = registry.champion_of(version.name)
        if champion and str(champion.version) == str(version.version):
            return f"{address_of(version)} is champion already."
        verdict = _contest(version, champion, rule)
        try:
            return _conclude(version, champion, verdict)
        except ChampionMoved:
            time.sleep(random.uniform(0.1, 1.0))  # so that waiting processes do not collide again
    raise click.ClickException(f"others keep moving {version.name}@{CHAMPION}; try again later")


def try_for_champion(name: str, version: str) -> str:
    """Let a newly trained version compete by the default rule; return the outcome in words.

    It is no error if no contest is possible.
    """
    try:
        return promote(f"models:/{name}/{version}", Rule())
    except click.ClickException as error:
        return f"{name}@{CHAMPION} stays as it was: {error.message}."


def _conclude(version: ModelVersion, champion: ModelVersion | None, verdict: Verdict | None) -> str:
    """Move the alias if the verdict says so, and record it either way."""
    name, number = version.name, str(version.version)
    before = str(champion.version) if champion else None
    if champion is None or verdict is None:
        why = f"metrics of version {before} are undefined" if before else "there was no champion"
        words = f"version {number} became champion without a contest: {why}"
        registry.move_champion(name, number, before=before, why=words, undoes=0)
    else:
        verb = _VERBS[verdict.rule.rule][verdict.wins]
        words = f"version {number} {verb} version {champion.version}: {verdict}"
        if verdict.wins:
            registry.move_champion(name, number, before=before, why=words, undoes=0)
        registry.tag_version(name, number, _tags(verdict, champion))
    won = verdict is None or verdict.wins
    registry.describe_contest(version, words, is_champion=won)
    fate = f"It is now {name}@{CHAMPION}." if won else f"{name}@{CHAMPION} stays as it was."
    return f"{words[0].upper()}{words[1:]}. {fate}"


def _tags(verdict: Verdict, champion: ModelVersion) -> dict[str, str]:
    rule, difference = verdict.rule, verdict.difference
    tags = {
        "result": "won" if verdict.wins else "lost", "against": champion.version,
        "figure": rule.figure, "rule": rule.rule, "margin": f"{rule.margin:g}",
        "difference": f"{difference.value:.6f}", "low": f"{difference.low:.6f}",
        "high": f"{difference.high:.6f}", "p_value": f"{difference.p_value:.3g}",
        "val_images": verdict.n_images,
    }  # fmt: skip
    return {f"contest.{key}": str(value) for key, value in tags.items()}


def roll_back(name: str, *, steps: int = 1) -> str:
    """Return the alias to the champion before, some steps back; describe it in words.

    Raises click.ClickException if there is none.
    """
    champion, earlier = registry.champion_of(name), registry.champions_before(name)
    at = str(champion.version) if champion else None
    if len(earlier) < steps:
        raise click.ClickException(
            f"there is no champion of {name} {steps} back from version {at}; "
            f"champions before it, the latest first: {', '.join(earlier) or 'none'}"
        )
    version = registry.find_version(f"models:/{name}/{earlier[steps - 1]}")
    words = f"version {version.version} is back in place of version {at}"
    registry.move_champion(name, str(version.version), before=at, why=words, undoes=steps)
    registry.describe_contest(version, words, is_champion=True)
    return f"{words[0].upper()}{words[1:]}. It is now {name}@{CHAMPION}."


class _NoScores(click.ClickException):
    """There are no scores of a version on val."""


def _contest(challenger: ModelVersion, champion: ModelVersion | None, rule: Rule) -> Verdict | None:
    """Hold the contest on val; None if there is no champion, or one whose metrics are undefined.

    Metrics are undefined on a val split where no label has a positive; they decide nothing.
    """
    try:
        digest, scores = _scores_of(challenger)
    except _NoScores:
        if champion:
            raise
        return None
    if not _has_positive(scores):
        raise click.ClickException(
            f"no val image of {address_of(challenger)} has a label, so that its metrics are "
            "undefined; label some, and train again"
        )
    if champion is None:
        return None
    other, other_scores = _scores_of(champion)
    if not _has_positive(other_scores):
        return None
    if digest != other:
        raise click.ClickException(
            f"{address_of(challenger)} and the champion, version {champion.version}, have other "
            f"val images (digests {digest} and {other}); train both on the same data with the same "
            "val split"
        )
    return decide(scores, other_scores, rule)


def _has_positive(saved: SavedScores) -> bool:
    return saved.targets is not None and bool(saved.targets.any())


def _scores_of(version: ModelVersion) -> tuple[str, SavedScores]:
    """Return the digest of a version's val images, and its scores on them.

    Those of its own training run; or those that `evaluate` made of the same images since. Others
    won't do: it may have been trained on them.
    """
    trained = reader.training_run(version)
    digest = trained.data.tags.get("data.val_digest") if trained else None
    if trained and not digest:
        raise _NoScores(
            f"{address_of(version)} was trained without a val split; a contest needs one"
        )
    for run in chain([trained] if trained else [], reader.evaluations(version)):
        own = run.data.tags.get("data.val_digest")
        if own and digest in (None, own) and (saved := _fetch(run)):
            return own, saved
    raise _NoScores(
        f"there are no scores of {address_of(version)} on val; make them with `nuswide "
        f"evaluate --model {address_of(version)} --split val --data DIR`"
    )


def _fetch(run: RecordedRun) -> SavedScores | None:
    return reader.fetch_scores(run.info.run_id, "val")
