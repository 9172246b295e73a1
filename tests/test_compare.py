import csv
import io

import pytest
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.entities.run_inputs import RunInputs

from nuswide.compare import make_table, metric_bars, to_csv, to_html, to_text


def recorded(name: str, metrics: dict[str, float], *, digest: str = "d1", **params: str) -> Run:
    info = RunInfo(
        run_id=f"{name}-0123456789", experiment_id="0", user_id="", status="FINISHED",
        start_time=0, end_time=1, lifecycle_stage="active", run_name=name,
    )  # fmt: skip
    data = RunData(
        [Metric(k, v, 0, 0) for k, v in metrics.items()],
        [Param(k, v) for k, v in params.items()],
        [RunTag("data.test_digest", digest), RunTag("data.protocol", "p")],
    )
    return Run(info, data, RunInputs([]))


def rows_of(*runs: Run) -> dict[str, tuple[tuple[str, ...], frozenset[int]]]:
    return {row.name: (row.cells, row.best) for row in make_table(runs).rows}


def test_only_params_that_differ_are_shown() -> None:
    rows = rows_of(recorded("a", {}, lr="1", seed="3"), recorded("b", {}, lr="2", seed="3"))
    assert rows["lr"][0][:2] == ("1", "2")
    assert "seed" not in rows


def test_two_spellings_of_a_number_are_no_difference() -> None:
    assert "lr" not in rows_of(recorded("a", {}, lr="1e-4"), recorded("b", {}, lr="0.0001"))


def test_a_param_that_one_run_lacks_is_a_difference() -> None:
    assert rows_of(recorded("a", {}, lr="1"), recorded("b", {}))["lr"][0][:2] == ("1", "")


def test_the_best_run_is_marked_and_ties_both() -> None:
    rows = rows_of(
        recorded("a", {"test/map": 0.5, "val/map": 0.2}),
        recorded("b", {"test/map": 0.4, "val/map": 0.2}),
    )
    assert rows["test/map"][1] == {0} and rows["val/map"][1] == {0, 1}


def test_baselines_stand_beside_the_runs_and_win_nothing() -> None:
    figures = {"test/map": 0.1, "test_baselines/top_k_map": 0.9, "val/map": 0.3}
    rows = rows_of(recorded("a", figures), recorded("b", {"test/map": 0.2}))
    assert rows["test/map"] == (("0.100", "0.200", "", "0.900"), frozenset({1}))
    assert rows["val/map"][0] == ("0.300", "", "", "")


def test_runs_on_different_test_images_are_not_ranked() -> None:
    runs = (recorded("a", {"test/map": 0.5}), recorded("b", {"test/map": 0.4}, digest="d2"))
    table = make_table(runs)
    assert not any(row.best for row in table.rows)
    assert "different images" in table.remarks[0]
    assert "test digest" in {row.name for row in table.rows} and len(table.columns) == 2


def test_runs_on_different_test_images_are_ranked_if_told() -> None:
    runs = (recorded("a", {"test/map": 0.5}), recorded("b", {"test/map": 0.4}, digest="d2"))
    table = make_table(runs, across_test_sets=True)
    assert {row.name: row.best for row in table.rows}["test/map"] == {0}
    assert any("different images" in remark for remark in table.remarks)


def test_the_protocol_and_the_test_digest_are_always_shown() -> None:
    rows = rows_of(recorded("a", {}), recorded("b", {}))
    assert rows["test digest"][0][:2] == ("d1", "d1") and rows["protocol"][0][:2] == ("p", "p")


def test_a_run_that_chose_on_test_is_pointed_out() -> None:
    runs = (recorded("a", {}, select_on="test"), recorded("b", {}, select_on="val"))
    assert any("flatters" in remark for remark in make_table(runs).remarks)


def test_seconds_are_shown_and_never_marked() -> None:
    rows = rows_of(recorded("a", {"train/seconds": 9}), recorded("b", {"train/seconds": 5}))
    assert rows["train/seconds"] == (("9", "5", "", ""), frozenset())


@pytest.mark.parametrize("width", [40, 80, 300])
def test_the_text_fits_the_terminal_and_shows_every_column(width: int) -> None:
    runs = [recorded(f"run{i}", {"test/map": i / 10}) for i in range(7)]
    text = to_text(make_table(runs), width)
    assert max(map(len, text.splitlines())) <= max(width, 42)
    assert all(f"run{i}" in text for i in range(7))


def test_csv_can_be_read_back() -> None:
    table = make_table([recorded("a,b", {"test/map": 0.5}), recorded("c", {"test/map": 0.25})])
    lines = list(csv.reader(io.StringIO(to_csv(table))))
    assert lines[0][1:3] == ["a,b", "c"]
    assert ["test/map", "0.500", "0.250", "", ""] in lines


def test_the_page_escapes_what_a_user_typed_and_needs_no_network() -> None:
    runs = (recorded("<script>", {}, note="<b>&"), recorded("b", {}, note="x"))
    page = to_html(make_table(runs), metric_bars({"a": {"map": 0.5}}, "on test"))
    assert "<script>" not in page and "&lt;b&gt;&amp;" in page
    assert "http" not in page and "data:image/png;base64," in page
