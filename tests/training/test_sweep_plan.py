"""What a sweep tries: its file, its places, and the giving out of them to several processes."""

import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path

import click
import optuna
import postgres
import pytest
import yaml
from optuna.trial import TrialState

from nuswide.config import load_config
from nuswide.training.sweep.plan import Dimension, Plan, read_plan
from nuswide.training.sweep.propose import distribution, key_of, propose
from nuswide.training.sweep.store import StudyStorage
from nuswide.training.sweep.study import agree, queue_next, suggest, take_stock
from nuswide.training.sweep.trials import read_trials

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "experiments" / "sweeps").glob("*.yaml"))
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),  # trials are asked for by hand
]
LR = {"low": 1e-4, "high": 1e-2, "log": True}


def plan_of(folder: Path, **content: object) -> Plan:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_plan(path, {}, trials=None)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    with postgres.server() as server:
        yield server.url


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_loads_and_gives_its_command(path: Path) -> None:
    plan = read_plan(path, {}, trials=None)
    assert plan.trials <= plan.size
    assert f"  nuswide sweep experiments/sweeps/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"serch": {}}, "unknown key 'serch'; did you mean search"),
        ({}, "needs `search`"),
        ({"search": {"lrr": LR}}, "unknown field 'lrr'; did you mean lr"),
        ({"search": {"lr": 0.1}}, "lr needs a list of values, or a range"),
        ({"search": {"lr": [0.0, 0.1]}}, "lr=0.0 is out of range; it must be above 0"),
        ({"search": {"hue": {"low": 0, "high": 0.7}}}, "hue=0.7 is out of range"),
        ({"search": {"lr": {"low": 1e-2, "high": 1e-4}}}, "from low=0.01 to high=0.0001"),
        ({"search": {"hue": {"low": 0, "high": 0.1, "log": True}}}, "low=0 must be above 0"),
        ({"search": {"lr": {"low": 1e-4, "hi": 1e-2}}}, "lr needs a list of values, or a range"),
        ({"search": {"lr": {**LR, "step": 1}}}, "unknown key of lr 'step'"),
        ({"search": {"lr": {**LR, "points": 3}}}, "points of lr are for sampler: grid"),
        ({"search": {"lr": LR}, "sampler": "grid"}, "a grid needs points"),
        ({"search": {"loss": {"low": 0, "high": 1}}}, "loss is no number"),
        (
            {"search": {"image_size_px": {"low": 0, "high": 64}}},
            "cannot be all of 0 to 64: image_size_px=1 must be 0 or at least 32; give a list",
        ),
        (
            {"search": {"start_size_px": {"low": 32, "high": 128}}},
            "cannot be all of 32 to 128: start_size_px=33 is no multiple of 32",
        ),
        ({"search": {"loss": ["bce", "assl"]}}, "unknown loss 'assl'; did you mean asl"),
        ({"search": {"head": ["linear", "linear"]}}, "head has a value twice"),
        ({"search": {"head": ["linear", "gcn"]}, "trials": 3}, "trials=3, but there are 2"),
        ({"search": {"split_seed": [0, 1]}}, "split_seed can't be searched"),
        ({"search": {"lr": LR}, "sampler": "tpee"}, "unknown sampler 'tpee'; did you mean tpe"),
        ({"search": {"lr": LR}, "pruner": "medain"}, "unknown pruner 'medain'"),
        ({"search": {"lr": LR}, "trials": "ten"}, "trials='ten' must be a whole number"),
        ({"search": {"lr": LR}, "experiment": {"epoch": 3}}, "unknown field 'epoch'"),
        ({"search": {"lr": LR}, "experiment": "none.yaml"}, "cannot read .*none.yaml"),
        (
            {"search": {"warmup_epochs": [0, 5], "epochs": [3, 9]}},
            "warmup_epochs=5.0 leaves nothing of epochs=3",
        ),
        (
            {"search": {"lr": LR}, "experiment": {"select_on": "test", "test_freq": 9}},
            "a sweep must not see test",
        ),
        (
            {"search": {"lr": LR}, "experiment": {"select_on": "last", "val_fraction": 0}},
            "a sweep chooses on val",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    with pytest.raises(click.UsageError, match=message) as error:
        plan_of(tmp_path, **content)
    assert "\n" not in error.value.message


def test_a_searched_field_is_no_option_too(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("search: {lr: [0.1, 0.2]}")
    with pytest.raises(click.UsageError, match="lr is searched, and given as an option"):
        read_plan(tmp_path / "sweep.yaml", {"lr": "0.1"}, trials=None)


def test_a_trial_is_the_experiment_with_its_params_on_top(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 7\nlr: 1e-3\n")
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "sweep.yaml"
    path.write_text("experiment: ../base.yaml\nsearch: {lr: {low: 1e-5, high: 1e-2, log: true}}\n")
    plan = read_plan(path, {"batch_size": "4"}, trials=5)
    config = plan.config({"lr": 2e-4})
    assert (config.epochs, config.lr, config.batch_size) == (7, 2e-4, 4)
    assert plan.trials == 5 and plan.search[0].low == 1e-5  # which YAML reads as text
    path.write_text("experiment: {experiment: ../base.yaml, epochs: 8}\nsearch: {lr: [0.1, 0.2]}\n")
    assert read_plan(path, {}, trials=None).base == {"epochs": 8, "lr": "1e-3"}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plan.changed({"lr": 2e-4})))
    assert load_config(again, {}) == config


GRID = {"lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3}, "head": ["linear", "gcn"]}
SMALL = {"epochs": {"low": 1, "high": 3}, "head": ["linear", "gcn"]}


def test_a_grid_has_each_point_once_and_keeps_its_order_when_it_is_cut(tmp_path: Path) -> None:
    whole = plan_of(tmp_path, sampler="grid", search=GRID, seed=3)
    points = [propose(whole, place, []) for place in range(whole.trials)]
    assert whole.trials == 6 and {p["lr"] for p in points} == {1e-4, 1e-3, 1e-2}
    assert len({key_of(p) for p in points}) == 6
    part = plan_of(tmp_path, sampler="grid", search=GRID, seed=3, trials=4)
    assert [propose(part, place, []) for place in range(4)] == points[:4]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_small_space_is_tried_whole_and_nothing_twice(tmp_path: Path, sampler: str) -> None:
    plan = plan_of(tmp_path, sampler=sampler, search=SMALL, trials=6)
    study = optuna.create_study(direction="maximize")
    for place in range(6):
        params = propose(plan, place, study.get_trials())
        study.add_trial(
            optuna.create_trial(
                params=params,
                distributions={d.name: distribution(d) for d in plan.search},
                user_attrs={"place": place, "params": params},
                value=float(params["epochs"]),
            )
        )
    assert len({key_of(trial.params) for trial in study.trials}) == 6


def test_tpe_draws_near_what_was_good(tmp_path: Path) -> None:
    """Its value falls with the distance from lr=1e-3, in the middle: 0.25 off were chance."""
    plan = plan_of(tmp_path, search={"lr": LR}, trials=60)
    (lr,) = plan.search
    study = optuna.create_study(direction="maximize")
    for place in range(20):
        study.add_trial(
            optuna.create_trial(
                params={"lr": lr.at(place / 20)}, distributions={"lr": distribution(lr)},
                user_attrs={"place": place, "params": {"lr": lr.at(place / 20)}},
                value=-abs(place / 20 - 0.5),
            )
        )  # fmt: skip
    drawn = [propose(plan, place, study.trials)["lr"] for place in range(20, 60)]
    assert sum(abs(lr.share_of(value) - 0.5) for value in drawn) / 40 < 0.15


@pytest.mark.parametrize(
    "dimension",
    [
        Dimension("epochs", (), 1, 9, False, True),
        Dimension("epochs", (), 1, 9, True, True),
        Dimension("lr", (), 1e-5, 3e-2, True, False),
        Dimension("hue", (), 0, 0.33333333, False, False),
        Dimension("head", ("linear", "gcn", "csra")),
    ],
)
def test_draws_lie_between_the_ends_and_reach_them(dimension: Dimension) -> None:
    drawn = [dimension.at(place / 10_000) for place in range(10_000)]
    assert (
        drawn[0] == dimension.ends[0] and drawn[-1] == pytest.approx(dimension.ends[-1], rel=1e-2)
        if dimension.name != "head"
        else set(drawn) == set(dimension.values)
    )
    if dimension.is_whole:
        assert set(drawn) == set(range(1, 10))
    for value in drawn[::97]:
        assert 0 <= dimension.share_of(value) <= 1
        assert distribution(dimension)._contains(distribution(dimension).to_internal_repr(value))


def give_out(url: str, path: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    """What a worker does, but with no training: all speed, so that two meet often."""
    plan = read_plan(path, {}, trials=None)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = StudyStorage(url, name="given", heartbeat_s=plan.heartbeat_s)
    barrier.wait()
    with store.exclusive_lock():
        study = store.open_study(optuna.pruners.NopPruner())
        agree(study, plan, "digest")
    while True:
        with store.exclusive_lock():
            take_stock(study)
            if queue_next(study, plan) is None:
                return
            store.expect_heartbeat()
            study.optimize(lambda trial: take(trial, store, plan), n_trials=1)


def take(trial: optuna.Trial, store: StudyStorage, plan: Plan) -> float:
    for dimension in plan.search:
        assert suggest(trial, dimension) == trial.user_attrs["params"][dimension.name]
    store.wait_for_heartbeat()
    return 0.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_processes_that_begin_at_once_share_out_the_places(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else they compile torch anew
    url = f"sqlite:///{tmp_path / 'sweeps.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("database")
    search = {"lr": {**LR, "points": 5}, "head": ["linear", "gcn", "csra"]}
    plan = plan_of(tmp_path, sampler="grid", search=search)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["nuswide.training.sweep.study"]
    )  # torch and mlflow once, not thrice
    barrier = server.Barrier(3)
    path = tmp_path / "sweep.yaml"
    workers = [server.Process(target=give_out, args=(url, path, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    study = StudyStorage(url, name="given", heartbeat_s=30).open_study(optuna.pruners.NopPruner())
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 15
    assert [trial.index for trial in read_trials(study)] == list(range(15))
    assert len({key_of(trial.params) for trial in study.trials}) == 15 == plan.trials


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_queued_again(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, search={"lr": LR}, trials=2)
    store = StudyStorage(f"sqlite:///{tmp_path / 'sweeps.db'}", name="dead", heartbeat_s=30)
    study = store.open_study(optuna.pruners.NopPruner())
    agree(study, plan, "digest")
    assert queue_next(study, plan) == 0
    study.ask()  # and no more of that worker
    take_stock(study)
    (lost,) = read_trials(study)
    assert (lost.state, lost.deaths) == ("lost", 1)
    assert queue_next(study, plan) == 0
    (queued,) = read_trials(study)
    assert (queued.state, queued.params) == ("waiting", lost.params)


def test_a_trial_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, search={"lr": LR}, trials=2)
    store = StudyStorage(f"sqlite:///{tmp_path / 'sweeps.db'}", name="deadly", heartbeat_s=30)
    study = store.open_study(optuna.pruners.NopPruner())
    agree(study, plan, "digest")
    places = []
    for _ in range(5):
        places.append(queue_next(study, plan))
        study.ask()
        take_stock(study)
    assert places == [0, 0, 0, 0, 1]
    assert re.search("4 workers died on it", read_trials(study)[0].reason)


def test_a_study_goes_on_with_the_same_plan_alone(tmp_path: Path) -> None:
    store = StudyStorage(f"sqlite:///{tmp_path / 'sweeps.db'}", name="same", heartbeat_s=30)
    study = store.open_study(optuna.pruners.NopPruner())
    agree(study, plan_of(tmp_path, search={"lr": LR}, trials=4), "digest")
    agree(study, plan_of(tmp_path, search={"lr": LR}, trials=6), "digest")  # more of them
    for content, said in (
        (
            {"search": {"lr": {**LR, "high": 1}}},
            "search lr was 0.0001 to 0.01, log, is 0.0001 to 1",
        ),
        ({"search": {"lr": LR, "epochs": [1, 2]}}, "search epochs was the default, is 1, 2"),
        ({"search": {"lr": LR}, "experiment": {"epochs": 3}}, "epochs was the default, is 3"),
        ({"search": {"lr": LR}, "seed": 1}, "seed was 0, is 1"),
        ({"search": {"lr": LR}, "trials": 5}, "trials was 6, is 5"),
    ):
        with pytest.raises(click.UsageError, match=re.escape(said)):
            agree(study, plan_of(tmp_path, **{"trials": 6, **content}), "digest")
    with pytest.raises(click.UsageError, match="data digest was digest, is other"):
        agree(study, plan_of(tmp_path, search={"lr": LR}, trials=6), "other")


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "sweeps.db"])
def test_another_storage_is_refused(url: str) -> None:
    with pytest.raises(click.UsageError, match="give sqlite:///FILE or postgresql://"):
        StudyStorage(url, name="x", heartbeat_s=30)


def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(click.ClickException, match="does not answer") as error:
        StudyStorage("postgresql://u:secret@127.0.0.1:1/d", name="x", heartbeat_s=30)
    assert "\n" not in error.value.message and "secret" not in error.value.message
