import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import mlflow
import pytest

from nuswide.tracking import reader, registry
from nuswide.tracking.registry import ChampionMoved, champions_before, find_version, history_of


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("tracking")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(None)


def make_model(name: str, n_versions: int) -> mlflow.MlflowClient:
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    for _ in range(n_versions):
        client.create_model_version(name, "runs:/x/model")
    return client


def move(name: str, version: str, before: str | None, undoes: int = 0) -> None:
    why = f"{version} after {before}"
    registry.move_champion(name, version, before=before, why=why, undoes=undoes)


def champion(name: str) -> str:
    return str(find_version(f"models:/{name}@champion").version)


def pending_tags(name: str) -> list[str]:
    tags = mlflow.MlflowClient().get_registered_model(name).tags
    return [k for k, v in tags.items() if k.startswith("champion.") and not json.loads(v)["done"]]


def leave_pending(name: str, version: str, *, seconds_ago: float, number: int = 1) -> None:
    about = {"version": version, "before": None, "why": "", "undoes": 0, "done": False}
    about["at"] = time.time() - seconds_ago
    mlflow.MlflowClient().set_registered_model_tag(
        name, f"champion.{number:04d}.cut", json.dumps(about)
    )


def test_versions_are_found_by_alias_number_and_latest() -> None:
    make_model("u", 2)
    move("u", "1", None)
    assert champion("u") == "1"
    assert str(find_version("models:/u/1").version) == "1"
    assert str(find_version("models:/u/latest").version) == "2"
    for wrong in ("u", "models:/u", "models:/u/9", "models:/u@best", "models:/", "runs:/a/model"):
        with pytest.raises(click.ClickException):
            find_version(wrong)


NAMES = ["nuswide-tagger", "o'brien", "my tagger", "été 100%", "none", "a.b_c"]
NO_NAMES = ["team/tagger", "a:b", "a@b", "a?b", "a#b", 'a"b', "", " ", " a", "a\nb", ".", "..a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_accepted_can_be_registered_and_found(name: str) -> None:
    registry.check_name(name)
    make_model(name, 2)
    move(name, "1", None)
    assert champion(name) == "1"
    latest = find_version(f"models:/{name}/latest")
    assert (latest.name, str(latest.version)) == (name, "2")
    assert list(reader.evaluations(latest)) == []


@pytest.mark.parametrize("name", [*NO_NAMES, "x" * 256])
def test_a_name_that_cannot_be_found_is_refused_with_one_that_can(name: str) -> None:
    with pytest.raises(click.UsageError, match="cannot be the name of a model") as caught:
        registry.check_name(name)
    assert "\n" not in caught.value.message
    registry.check_name(caught.value.message.rpartition("give e.g. ")[2])


def test_evaluations_are_found_under_a_name_with_a_quote() -> None:
    make_model("d'Arc", 1)
    tags = {"nuswide.job": "evaluate", "model.version": "d'Arc/1"}
    with mlflow.start_run(tags=tags) as run:
        pass
    found = reader.evaluations(find_version("models:/d'Arc/1"))
    assert [one.info.run_id for one in found] == [run.info.run_id]


def test_each_move_is_in_the_history_with_its_reason() -> None:
    make_model("h", 3)
    move("h", "1", None)
    move("h", "3", "1")
    assert [(m.number, m.version, m.before, m.why) for m in history_of("h")] == [
        (1, "1", None, "1 after None"),
        (2, "3", "1", "3 after 1"),
    ]
    assert pending_tags("h") == []


def test_going_back_twice_leads_to_the_champion_before_the_one_before() -> None:
    make_model("b", 4)
    for version, before in (("1", None), ("2", "1"), ("4", "2")):
        move("b", version, before)
    assert champions_before("b") == ["2", "1"]
    move("b", "2", "4", undoes=1)
    assert champions_before("b") == ["1"]
    move("b", "3", "2")
    assert champions_before("b") == ["2", "1"]


def test_a_champion_that_came_by_other_means_is_gone_back_to_as_well() -> None:
    client = make_model("o", 3)
    move("o", "1", None)
    client.set_registered_model_alias("o", "champion", "2")
    assert champions_before("o") == ["1"]
    move("o", "3", "2")
    assert champions_before("o") == ["2", "1"]


def test_a_move_from_a_champion_that_is_none_any_more_is_refused_and_leaves_nothing() -> None:
    make_model("m", 3)
    move("m", "1", None)
    move("m", "2", "1")
    with pytest.raises(ChampionMoved, match="version 2 meanwhile"):
        move("m", "3", "1")
    assert champion("m") == "2" and len(history_of("m")) == 2 and pending_tags("m") == []


def test_a_move_waits_for_one_under_way_and_clears_up_after_one_that_was_cut_off() -> None:
    make_model("c", 3)
    leave_pending("c", "2", seconds_ago=1)
    with pytest.raises(ChampionMoved, match="version 2 of c is being promoted"):
        move("c", "1", None)
    leave_pending("c", "2", seconds_ago=3600)
    move("c", "1", None)
    assert champion("c") == "1" and pending_tags("c") == []
    assert [m.version for m in history_of("c")] == ["1"]


def test_a_move_that_was_cut_off_after_the_alias_stays_in_the_history() -> None:
    client = make_model("k", 3)
    leave_pending("k", "2", seconds_ago=3600)
    client.set_registered_model_alias("k", "champion", "2")
    move("k", "3", "2")
    assert [m.version for m in history_of("k")] == ["2", "3"]
    assert champions_before("k") == ["2"]


def test_of_many_moves_at_once_each_that_goes_through_is_in_the_history() -> None:
    make_model("r", 9)
    move("r", "1", None)

    def try_move(version: int) -> bool:
        try:
            move("r", str(version), "1")
        except ChampionMoved:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(try_move, range(2, 10)))
    history = history_of("r")
    assert sum(moved) <= 1  # from the same champion on
    assert [m.version for m in history[1:]] == [str(i + 2) for i, done in enumerate(moved) if done]
    assert champion("r") == history[-1].version and pending_tags("r") == []


@pytest.mark.slow
def test_the_registry_and_the_server_need_no_torch() -> None:
    serve = "nuswide.deployment.serve"
    modules = f"nuswide.tracking.registry, {serve}.limits, {serve}.model, {serve}.server"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
