"""The whole of a comparison, on runs that are recorded for real."""

import csv
import io
import re
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
from nuswide.evaluation.compare import plots, report, tables
from nuswide.evaluation.compare.entrants import choose_baseline, find_entrants, require_one_test_set
from nuswide.evaluation.compare.paired import COMPARED, Comparison, measure
from nuswide.metrics import all_metrics
from nuswide.reporting.table import to_csv
from nuswide.tracking.run import start_run
from nuswide.tracking.score_file import FILE, SavedScores

IMAGES, LABELS = 160, 5
THRESHOLDS = np.full(LABELS, 0.5, dtype=np.float32)


def scores_of(quality: float, *, seed: int = 0, images: int = IMAGES) -> SavedScores:
    rng = np.random.default_rng(3)
    targets = (rng.random((images, LABELS)) < 0.3).astype(np.uint8)
    own = np.random.default_rng([5, seed]).normal(size=targets.shape)
    logits = quality * targets + rng.normal(size=targets.shape) + 0.3 * own - quality / 2
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    names = tuple(f"{i}.jpg" for i in range(images))
    labels = tuple(f"<label {i}>" for i in range(LABELS))
    return SavedScores(names, labels, scores, targets, None, THRESHOLDS)


def record(
    folder: Path, quality: float, *, name: str = "train", seed: int = 0, digest: str = "d",
    keep: bool = True, val: float = 0.5, saved: SavedScores | None = None, **params: str,
) -> str:  # fmt: skip
    saved = saved or scores_of(quality, seed=seed)
    assert saved.targets is not None
    found = all_metrics(saved.targets, saved.scores, THRESHOLDS)
    with start_run("train", f"{name} seed={seed}") as run:
        run.log_params({"seed": seed, "lr": "1e-3", **params})
        run.set_tags({"data.test_digest": digest, "data.val_digest": f"val {seed}"})
        for step in range(3):
            run.log_metrics({"train/loss": 1 / (step + 1), "val/map": val}, step=step)
        run.log_metrics({f"test/{k}": v for k, v in found.items()}, step=3)
        run.log_metrics({"test_baselines/top_k_map": 0.3, "train/images_per_s": 100}, step=3)
        if keep:
            saved.save(folder / FILE)
            run.log_file(folder / FILE, "test")
    return run.id


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Runs by a short name: three seeds each of two recipes, one like the first, and others."""
    with Workspace(tmp_path_factory.mktemp("tracking")).tracked("all") as workspace:
        found = {}
        for seed in range(3):
            found[f"good {seed}"] = record(
                workspace.folder, 2.0, name="train head=csra", seed=seed, head="csra"
            )
            found[f"poor {seed}"] = record(
                workspace.folder, 1.0, name="train head=linear", seed=seed, val=0.4, head="linear"
            )
        found["same"] = record(
            workspace.folder, 2.02, name="mine", seed=9, val=0.45, head="csra", lr="1e-4"
        )
        found["old"] = record(workspace.folder, 3.0, name="old", keep=False, head="max")
        found["elsewhere"] = record(
            workspace.folder, 1.0, name="other data", digest="other", head="max"
        )
        yield found


def compared(*runs: str, baseline: str | None = None, **options: bool) -> Comparison:
    entrants = find_entrants(",".join(runs), pool_seeds=options.get("pool_seeds", True))
    across = options.get("across_test_sets", False)
    is_paired = require_one_test_set(entrants, across_test_sets=across)
    return measure(entrants, choose_baseline(entrants, baseline), is_paired=is_paired)


@pytest.fixture(scope="module")
def whole(ids: dict[str, str]) -> Comparison:
    return compared(*(run for name, run in ids.items() if name != "elsewhere"))


def by_name(comparison: Comparison) -> dict[str, int]:
    return {entrant.name: place for place, entrant in enumerate(comparison.entrants)}


def test_seeds_of_one_recipe_are_one_entrant_named_by_what_tells_it_apart(
    whole: Comparison,
) -> None:
    runs = {entrant.name: len(entrant.runs) for entrant in whole.entrants}
    assert runs == {"train head=csra": 3, "train head=linear": 3, "mine seed=9": 1, "old seed=0": 1}


def test_the_mean_of_seeds_and_their_deviation_are_those_of_the_runs(whole: Comparison) -> None:
    place = by_name(whole)["train head=linear"]
    recorded = whole.entrants[place].values("test/map")
    estimate = whole.results[place].estimates["map"]
    assert estimate.value == pytest.approx(np.mean(recorded))
    assert estimate.deviation == pytest.approx(np.std(recorded, ddof=1))
    assert estimate.low < estimate.value


def test_the_best_on_val_is_the_baseline_and_comes_first(whole: Comparison) -> None:
    assert whole.entrants[0].name == whole.baseline == "train head=csra"
    assert "val" in whole.why_baseline and whole.results[0].differences is None


def test_what_is_worse_is_marked_and_what_is_only_higher_is_a_tie(whole: Comparison) -> None:
    places = by_name(whole)
    worse, same = (
        whole.results[places[name]].differences for name in ("train head=linear", "mine seed=9")
    )
    assert worse and same
    assert {worse[name].verdict for name in COMPARED} == {"worse"}
    assert {same[name].verdict for name in COMPARED} == {"tie"}
    assert all(d.corrected >= d.p_value for d in (*worse.values(), *same.values()))


def test_a_run_without_scores_has_its_recorded_metrics_and_is_paired_with_none(
    whole: Comparison, ids: dict[str, str]
) -> None:
    place = by_name(whole)["old seed=0"]
    result, run = whole.results[place], mlflow.get_run(ids["old"])
    assert result.estimates["map"].value == pytest.approx(run.data.metrics["test/map"])
    assert np.isnan(result.estimates["map"].low) and result.differences is None
    assert any("No scores were kept by old" in remark for remark in whole.remarks)


def test_a_label_without_positives_is_said_and_runs_from_before_its_metric_still_compare(
    ids: dict[str, str], tmp_path: Path
) -> None:
    pair = []
    for quality in (1.0, 2.0):
        saved = scores_of(quality)
        assert saved.targets is not None
        saved.targets[:, 4] = 0
        pair.append(record(tmp_path, quality, saved=saved, digest="fewer", head=str(quality)))
    client = mlflow.MlflowClient()
    older = client.get_run(pair[0])
    without = {k: v for k, v in older.data.metrics.items() if "with_positives" not in k}
    with start_run("train", "older") as run:
        run.log_params(older.data.params)
        run.set_tags({"data.test_digest": "fewer", "data.val_digest": "val 0"})
        run.log_metrics(without, step=3)
    comparison = compared(run.id, pair[1])
    assert "5 labels. map is over the 4 that have a positive" in tables.introduction(comparison)
    rows = {row[0]: row[1:] for row in tables.overview(comparison).rows}
    found = rows["test/macro/f1_with_positives"]
    assert sorted(cell is None for cell in found) == [False, True]
    recorded = client.get_run(pair[1]).data.metrics
    assert recorded["test/macro/f1_with_positives"] in found


def test_without_any_scores_the_recorded_metrics_stand_side_by_side(
    ids: dict[str, str], tmp_path: Path
) -> None:
    other = record(tmp_path, 1.0, name="older", keep=False, head="none")
    comparison = compared(ids["old"], other)
    assert tables.introduction(comparison) == "Nothing is paired: none kept its scores."
    page = report.to_html(comparison, plots.draw_all(comparison))
    assert "Differences" not in page and "Metrics on test" in page
    assert not tables.differences(comparison).rows and not tables.labels(comparison).rows


def test_each_label_is_compared_under_its_name_with_its_positives(whole: Comparison) -> None:
    table = tables.labels(whole)
    saved = scores_of(1.0)
    assert saved.targets is not None
    rows = [row for row in table.rows if row[0] == "train head=linear"]
    assert [row[2] for row in rows] == list(saved.labels)
    assert [row[3] for row in rows] == saved.targets.sum(axis=0).tolist()
    assert all(float(str(row[4])) < 0 for row in rows)


def test_other_test_images_are_refused_or_stand_unpaired(ids: dict[str, str]) -> None:
    runs = ids["good 0"], ids["elsewhere"]
    with pytest.raises(click.ClickException, match="across_test_sets=true"):
        compared(*runs)
    comparison = compared(*runs, across_test_sets=True)
    assert comparison.baseline is None
    assert all(result.differences is None for result in comparison.results)
    assert all(np.isfinite(result.estimates["map"].low) for result in comparison.results)
    assert "Nothing is paired" in tables.introduction(comparison)


def test_images_are_matched_by_name(ids: dict[str, str], tmp_path: Path) -> None:
    plain = compared(ids["poor 0"], ids["good 0"], pool_seeds=False)
    saved = scores_of(2.0, seed=0)
    order = np.random.default_rng(0).permutation(IMAGES)
    shuffled = replace(
        saved, images=tuple(saved.images[i] for i in order), scores=saved.scores[order],
        targets=saved.targets[order],  # type: ignore[index]
    )  # fmt: skip
    other = record(tmp_path, 2.0, name="train head=csra", saved=shuffled, head="csra")
    again = compared(ids["poor 0"], other, baseline=other)
    assert again.results[1].differences == plain.results[1].differences


def test_other_images_under_the_same_digest_are_refused(
    ids: dict[str, str], tmp_path: Path
) -> None:
    fewer = record(tmp_path, 1.0, saved=scores_of(1.0, images=100), head="fewer")
    with pytest.raises(click.ClickException, match="different images"):
        compared(ids["good 0"], fewer)


def test_a_baseline_is_chosen_by_run_and_must_be_there_and_have_scores(
    ids: dict[str, str],
) -> None:
    entrants = find_entrants(",".join([ids["poor 1"], ids["same"], ids["old"]]), pool_seeds=True)
    place, why = choose_baseline(entrants, ids["poor 1"])
    assert place is not None and entrants[place].runs[0].info.run_id == ids["poor 1"]
    assert why == "as given"
    for wanted, reason in (("nobody", "none of those"), (ids["old"], "kept no scores")):
        with pytest.raises(click.ClickException, match=reason):
            choose_baseline(entrants, wanted)


def test_a_seed_that_was_run_twice_counts_once_and_the_run_left_out_is_named(
    ids: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = record(tmp_path, 2.0, name="train head=csra", seed=2, head="csra")
    named = [ids["good 1"], ids["good 2"], again, ids["poor 0"]]
    entrants = find_entrants(",".join(named), pool_seeds=True)
    pooled = max(entrants, key=lambda entrant: len(entrant.runs))
    assert [run.info.run_id for run in pooled.runs] == [ids["good 1"], again]
    assert f"run {ids['good 2']} is left out" in capsys.readouterr().out


def test_seeds_are_pooled_whatever_they_ran_on_and_with_those_recorded_before_a_field_existed(
    ids: dict[str, str], tmp_path: Path
) -> None:
    hardware = {"device": "cuda", "compile": "on", "feed": "blocks", "cuda_graph": "True"}
    elsewhere = record(tmp_path, 2.0, seed=4, head="csra", **hardware)
    newer = record(tmp_path, 2.0, seed=5, head="csra", test_flips="False")
    other = record(tmp_path, 2.0, seed=6, head="csra", test_flips="True")
    named = [ids["good 0"], elsewhere, newer, other]
    entrants = find_entrants(",".join(named), pool_seeds=True)
    pooled, alone = sorted(entrants, key=lambda entrant: -len(entrant.runs))
    assert [run.info.run_id for run in pooled.runs] == [ids["good 0"], elsewhere, newer]
    assert [run.info.run_id for run in alone.runs] == [other]


def test_a_field_that_was_added_since_is_no_difference(ids: dict[str, str], tmp_path: Path) -> None:
    newer = record(tmp_path, 2.0, seed=5, head="csra", test_flips="False")
    entrants = find_entrants(f"{ids['good 0']},{newer}", pool_seeds=False)
    assert tables.params(entrants).rows == (("seed", "0", "5"),)


def test_seeds_can_be_compared_apart(ids: dict[str, str]) -> None:
    named = f"{ids['good 0']},{ids['good 1']}"
    assert len(find_entrants(named, pool_seeds=False)) == 2
    with pytest.raises(click.ClickException, match="pool_seeds=false"):
        find_entrants(named, pool_seeds=True)


def test_versions_are_compared_by_the_runs_that_made_or_evaluated_them(
    ids: dict[str, str], tmp_path: Path
) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("tagger")
    client.create_model_version("tagger", "runs:/x/model", ids["good 0"])
    client.create_model_version("tagger", "runs:/x/model", ids["old"])
    with start_run("evaluate", "tagger/2 on test") as run:
        run.set_tags({"model.version": "tagger/2", "data.test_digest": "d"})
        run.log_metrics({"test/map": 0.9}, step=0)
        scores_of(3.0).save(tmp_path / FILE)
        run.log_file(tmp_path / FILE, "test")
    entrants = find_entrants("models:/tagger/1,models:/tagger/2", pool_seeds=True)
    assert [e.name for e in entrants] == ["tagger/1", "tagger/2"]
    assert entrants[1].runs[0].info.run_id == run.id and entrants[1].has_scores
    place, _ = choose_baseline(entrants, "models:/tagger/2")
    assert place == 1
    with pytest.raises(click.ClickException, match="no model models:/tagger/7"):
        find_entrants("models:/tagger/7", pool_seeds=True)


@pytest.mark.slow
def test_the_command_records_page_tables_and_drawings(
    ids: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    runs = ",".join(ids[name] for name in ("good 0", "good 1", "poor 0", "poor 1", "old"))
    out = tmp_path / "a" / "comparison"
    done = CliRunner().invoke(main, ["compare", "--runs", runs, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert re.search(r"train head=linear +2 ", done.output) and "always the same few" in done.output
    comparison = mlflow.search_runs(
        ["0", mlflow.get_experiment_by_name("all").experiment_id],  # type: ignore[union-attr]
        "tags.`nuswide.job` = 'compare'", output_format="list",
    )[0]  # fmt: skip
    assert ids["poor 1"] in comparison.data.tags["compared"]
    address = f"runs:/{comparison.info.run_id}"
    page = mlflow.artifacts.load_text(f"{address}/comparison.html")
    assert page.count("data:image/png;base64,") >= 10 and "http" not in page
    assert "&lt;label 1&gt;" in page and "<label 1>" not in page
    rows = list(csv.DictReader(io.StringIO(
        mlflow.artifacts.load_text(f"{address}/differences.csv")
    )))  # fmt: skip
    assert {row["verdict"] for row in rows if row["entrant"] == "train head=linear"} == {"worse"}
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(comparison.info.run_id)}
    assert {"comparison.csv", "comparison.json", "labels.csv", "differences", "curves"} <= files
    assert (out / "comparison.html").read_text() == page
    assert (out / "differences" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_markdown_table_has_a_row_an_entrant_and_the_paired_difference(
    whole: Comparison,
) -> None:
    head, _, *rows = tables.to_markdown(whole).strip().splitlines()[2:]
    assert head.count("|") == 8 and all(row.count("|") == 8 for row in rows)
    assert [row.split("|")[1].strip() for row in rows[: len(whole.entrants)]] == [
        entrant.name.replace("|", "/") for entrant in whole.entrants
    ]
    poor = next(row for row in rows if "head=linear" in row)
    compared = next(
        r.differences["map"]
        for e, r in zip(whole.entrants, whole.results, strict=True)
        if "head=linear" in e.name and r.differences
    )
    assert tables.difference_text(compared) in poor and "▼" in poor


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--runs", "abc,def"], "no run and no MLflow experiment 'abc'"),
        (["--runs", "Default"], "a comparison needs two"),
        (["--runs", "all"], "tested on different images"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    ids: dict[str, str], arguments: list[str], reason: str
) -> None:
    failed = CliRunner().invoke(main, ["compare", *arguments])
    assert failed.exit_code == 1 and reason in failed.output, failed.output
    assert "Traceback" not in failed.output


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_the_text_fits_the_terminal_and_shows_every_figure(whole: Comparison, width: int) -> None:
    text = tables.to_text(whole, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in (*COMPARED, "head", "mine", "old"))
    assert "▼" in text and "=" in text and "▲" in tables.LEGEND


def test_a_name_that_is_cut_keeps_its_number_of_seeds(whole: Comparison) -> None:
    long = replace(whole.entrants[0], name="train " + "scale_min=0.9 " * 5)
    text = tables.to_text(replace(whole, entrants=(long, *whole.entrants[1:])), 80)
    assert any(re.search(r"… +3  ", line) for line in text.splitlines())


@pytest.mark.slow
def test_what_costs_the_same_everywhere_is_not_drawn(whole: Comparison) -> None:
    assert not [name for name in plots.draw_all(whole) if name.startswith("cost/")]
    assert "train/images_per_s" in report.to_html(whole, plots.draw_all(whole))


def test_csv_gives_back_every_number(whole: Comparison) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(tables.overview(whole)))))
    table = {row[0]: row[1:] for row in rows}
    assert table[""] == [entrant.name for entrant in whole.entrants]
    values = [result.estimates["map"].value for result in whole.results]
    assert [float(cell) for cell in table["test/map"]] == pytest.approx(values, rel=1e-5)
    assert table["head"][:2] == ["csra", "csra"] or "linear" in table["head"]
    assert table["test/map low"][by_name(whole)["old seed=0"]] == ""


def test_the_page_says_what_is_not_known(whole: Comparison) -> None:
    page = report.to_html(whole, plots.draw_all(whole))
    assert "no difference shown in map" in page and "worse than the baseline in map" in page
    assert "does not mean equal" in page and "No scores were kept by old" in page
