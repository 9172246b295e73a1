from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Workspace

from nuswide.cli import main
from nuswide.evaluation.promote import Rule, Verdict, decide, promote, roll_back, try_for_champion
from nuswide.metrics.bootstrap import Difference
from nuswide.tracking.registry import champion_of, history_of
from nuswide.tracking.run import start_run
from nuswide.tracking.score_file import FILE, SavedScores

IMAGES, LABELS = 300, 6


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Workspace(tmp_path_factory.mktemp("tracking")).tracked("val"):
        yield


def scores_of(quality: float, *, seed: int = 0) -> SavedScores:
    """Scores that tell true labels from others the better, the higher `quality` is."""
    rng = np.random.default_rng(7)
    targets = (rng.random((IMAGES, LABELS)) < 0.2).astype(np.uint8)
    noise = rng.normal(size=targets.shape) + 0.3 * np.random.default_rng(seed).normal(
        size=targets.shape
    )
    scores = (1 / (1 + np.exp(-(quality * targets + noise)))).astype(np.float32)
    images = tuple(f"{i}.jpg" for i in range(IMAGES))
    labels = tuple(f"label {i}" for i in range(LABELS))
    thresholds = np.full(LABELS, 0.5, dtype=np.float32)
    return SavedScores(images, labels, scores, targets, None, thresholds)


def record(
    tmp_path: Path, saved: SavedScores | None, digest: str | None = "d", job: str = "train",
    **tags: str,
) -> str:  # fmt: skip
    with start_run(job, "made") as run:
        if digest:
            run.set_tags({"data.val_digest": digest})
        run.set_tags({key.replace("__", "."): value for key, value in tags.items()})
        if saved:
            saved.save(tmp_path / FILE)
            run.log_file(tmp_path / FILE, "val")
    return run.id


def add_version(name: str, run_id: str | None) -> str:
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, "runs:/x/model", run_id).version
    return f"models:/{name}/{version}"


def contend(name: str, tmp_path: Path, quality: float, **options: str) -> str:
    return promote(add_version(name, record(tmp_path, scores_of(quality), **options)), Rule())


def champion(name: str) -> str:
    version = champion_of(name)
    assert version
    return str(version.version)


def test_the_first_is_champion_then_whoever_is_shown_to_be_better(tmp_path: Path) -> None:
    assert "without a contest" in contend("t", tmp_path, 1.0)
    assert "stays as it was" in contend("t", tmp_path, 0.5)
    assert "stays as it was" in contend("t", tmp_path, 1.0)
    assert champion("t") == "1"
    assert "Version 4 beat version 1: map +0." in contend("t", tmp_path, 2.0)
    assert champion("t") == "4"


def test_a_higher_figure_whose_interval_has_0_in_it_wins_nothing(tmp_path: Path) -> None:
    low, high = scores_of(1.0, seed=1), scores_of(1.03, seed=2)
    decision = decide(high, low, Rule())
    assert decision.difference.value > 0 > decision.difference.low
    assert not decision.wins
    assert decide(high, low, Rule(rule="not_worse", margin=0.1)).wins


@pytest.mark.parametrize(
    ("rule", "margin", "low", "wins"),
    [
        ("better", 0.0, 0.001, True), ("better", 0.0, 0.0, False), ("better", 0.01, 0.009, False),
        ("better", 0.01, 0.011, True), ("not_worse", 0.01, -0.009, True),
        ("not_worse", 0.01, -0.011, False), ("better", 0.0, float("nan"), False),
    ],
)  # fmt: skip
def test_the_whole_interval_must_be_beyond_the_margin(
    rule: str, margin: float, low: float, wins: bool
) -> None:
    difference = Difference(low + 0.02, low, low + 0.04, 0.5)
    assert Verdict(Rule("map", rule, margin), difference, 10).wins is wins


@pytest.mark.parametrize(
    ("options", "named"),
    [({"figure": "mAP"}, "map"), ({"rule": "best"}, "not_worse"), ({"margin": -0.1}, "margin")],
)
def test_a_rule_that_makes_no_sense_is_refused(options: dict[str, str], named: str) -> None:
    with pytest.raises(click.UsageError, match=named):
        Rule(**options)  # type: ignore[arg-type]


def test_images_in_another_order_are_matched_by_name() -> None:
    saved, better = scores_of(1.0), scores_of(2.0)
    order = np.random.default_rng(0).permutation(IMAGES)
    shuffled = replace(
        better, images=tuple(better.images[i] for i in order), scores=better.scores[order],
        targets=better.targets[order],  # type: ignore[index]
    )  # fmt: skip
    assert decide(shuffled, saved, Rule()) == decide(better, saved, Rule())


def test_other_images_or_another_truth_are_no_contest() -> None:
    saved = scores_of(1.0)
    renamed = replace(saved, images=("other.jpg", *saved.images[1:]))
    retold = replace(saved, targets=1 - saved.targets)  # type: ignore[operator]
    for other, reason in ((renamed, "different images"), (retold, "different targets")):
        with pytest.raises(click.ClickException, match=reason):
            decide(other, saved, Rule())


def test_other_val_images_no_val_and_no_scores_are_each_named(tmp_path: Path) -> None:
    contend("n", tmp_path, 1.0)
    for run_id, reason in (
        (record(tmp_path, scores_of(3.0), digest="other"), "have other val images"),
        (record(tmp_path, None, digest=None), "without a val split"),
        (record(tmp_path, None), "no scores of models:/n/4 on val"),
        (None, "no scores of models:/n/5 on val"),
    ):
        uri = add_version("n", run_id)
        with pytest.raises(click.ClickException, match=reason):
            promote(uri, Rule())
        assert reason in try_for_champion("n", uri.rpartition("/")[2])
    assert champion("n") == "1"


def test_undefined_metrics_win_nothing_and_block_nobody(tmp_path: Path) -> None:
    saved = scores_of(1.0)
    undefined = replace(saved, targets=np.zeros_like(saved.targets))
    uri = add_version("u", record(tmp_path, undefined, digest="without labels"))
    with pytest.raises(click.ClickException, match="no val image of models:/u/1 has a label"):
        promote(uri, Rule())
    assert champion_of("u") is None
    contend("u", tmp_path, 1.0)
    assert champion("u") == "2"
    with pytest.raises(click.ClickException, match="no val image"):
        promote(uri, Rule(rule="not_worse"))
    # A champion of a version of nuswide that let undefined metrics win.
    mlflow.MlflowClient().set_registered_model_alias("u", "champion", "1")
    words = contend("u", tmp_path, 0.5)
    assert champion("u") == "3" and "metrics of version 1 are undefined" in words
    assert history_of("u")[-1].before == "1"


def test_too_few_positives_for_an_interval_are_said_to_be_the_trouble() -> None:
    verdict = Verdict(Rule(), Difference(0.1, float("nan"), float("nan"), float("nan")), 4)
    assert "map +0.1000 with too few positives for an interval, on 4 val images" in str(verdict)


def test_scores_that_evaluate_made_of_the_same_val_images_count(tmp_path: Path) -> None:
    contend("e", tmp_path, 1.0)
    uri = add_version("e", record(tmp_path, None))
    record(
        tmp_path, scores_of(0.0), digest="seen in training", job="evaluate", model__version="e/2"
    )
    with pytest.raises(click.ClickException, match="no scores"):
        promote(uri, Rule())
    record(tmp_path, scores_of(3.0), job="evaluate", model__version="e/2")
    assert "It is now e@champion" in promote(uri, Rule())


def test_who_beat_whom_by_how_much_is_in_the_tags_and_the_descriptions(tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    contend("w", tmp_path, 1.0)
    client.update_registered_model("w", description="Tags photos.\nChampion: of old")
    words = contend("w", tmp_path, 2.0)
    version, model = client.get_model_version("w", "2"), client.get_registered_model("w")
    assert version.tags["contest.result"] == "won" and version.tags["contest.against"] == "1"
    low, value, high = (float(version.tags[f"contest.{k}"]) for k in ("low", "difference", "high"))
    assert 0 < low < value < high
    line = f"Champion: version 2 beat version 1: map {value:+.4f}"
    assert version.description.startswith(line)
    kept, ours = model.description.splitlines()
    assert kept == "Tags photos." and ours.startswith(line)
    assert f"{value:+.4f}" in words and f"{value:+.4f}" in history_of("w")[-1].why
    contend("w", tmp_path, 0.5)
    assert client.get_model_version("w", "3").tags["contest.result"] == "lost"
    assert client.get_registered_model("w").description == model.description


def test_who_is_only_not_worse_is_not_said_to_have_beaten_anyone(tmp_path: Path) -> None:
    contend("g", tmp_path, 1.0)
    uri = add_version("g", record(tmp_path, scores_of(1.0, seed=3)))
    words = promote(uri, Rule(rule="not_worse", margin=0.1))
    assert "about as good as version 1" in words and "beat" not in words
    assert champion("g") == "2"


def test_the_champion_does_not_compete_with_itself(tmp_path: Path) -> None:
    contend("s", tmp_path, 1.0)
    assert "is champion already" in promote("models:/s@champion", Rule())
    assert len(history_of("s")) == 1


def test_rolling_back_goes_step_by_step_and_stops_at_the_first(tmp_path: Path) -> None:
    for quality in (0.5, 1.5, 3.0):
        contend("b", tmp_path, quality)
    assert champion("b") == "3"
    assert "Version 2 is back in place of version 3" in roll_back("b")
    assert champion("b") == "2"
    roll_back("b")
    assert champion("b") == "1"
    with pytest.raises(click.ClickException, match="before it, the latest first: none"):
        roll_back("b")
    promote("models:/b/3", Rule())
    assert champion("b") == "3"
    with pytest.raises(click.ClickException, match="no champion of b 2 back"):
        roll_back("b", steps=2)


def test_several_steps_back_are_one_move(tmp_path: Path) -> None:
    for quality in (0.5, 1.5, 3.0):
        contend("v", tmp_path, quality)
    assert "Version 1 is back" in roll_back("v", steps=2)
    assert champion("v") == "1" and [m.undoes for m in history_of("v")] == [0, 0, 0, 2]


def test_the_command_promotes_rolls_back_and_answers_mistakes_in_one_line(tmp_path: Path) -> None:
    contend("c", tmp_path, 0.5)
    add_version("c", record(tmp_path, scores_of(3.0)))
    invoke = CliRunner().invoke
    done = invoke(main, ["promote", "--model", "models:/c/2", "--figure", "macro/f1"])
    assert done.exit_code == 0 and "macro/f1 +0." in done.output
    assert invoke(main, ["promote", "--model", "models:/c/2", "--rollback"]).exit_code == 0
    assert champion("c") == "1"
    for arguments, reason in (
        (["--model", "models:/c", "--rollback"], "champions before it, the latest first: none"),
        (["--model", "models:/nobody", "--rollback"], "no model 'nobody'"),
        (["--model", "models:/c/9"], "no model models:/c/9"),
        (["--rule", "best", "--model", "models:/c/2"], "not_worse"),
    ):
        failed = invoke(main, ["promote", *arguments])
        assert failed.exit_code in (1, 2) and reason in failed.output, failed.output
        assert "Traceback" not in failed.output
