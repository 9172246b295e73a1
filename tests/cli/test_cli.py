"""A user's mistakes: one clear line, exit code 1 or 2, and no run left behind."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from urllib.error import URLError

import click
import mlflow
import pytest
import torchvision
from click.testing import CliRunner
from conftest import ROOT, TINY, Workspace

from nuswide.cli import main
from nuswide.cli.options import extra
from nuswide.config import Config

Tamper = Callable[[Path], object]


@pytest.fixture(autouse=True, scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Workspace(tmp_path_factory.mktemp("tracking")).tracked():
        yield


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may spoil."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def error_of(*arguments: str) -> str:
    """Run a command that must fail, and give its one line of error."""
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("Error: ")]
    after = result.stderr.split("Error: ")[1].strip()
    assert "\n" not in after and "Traceback" not in result.stderr
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert not [run for run in runs if run.info.status == "RUNNING"]
    return line


def train_error(folder: Path, **options: str) -> str:
    given = {**TINY, "data": str(folder), **options}
    return error_of("train", *(x for k, v in given.items() for x in (f"--{k}", v)))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_picture(folder: Path) -> Path:
    name = json.loads((folder / "train.json").read_text())["samples"][0]["image_name"]
    return folder / "images" / name


def take_all_labels(content: dict) -> None:
    for sample in content["samples"]:
        sample["image_labels"].clear()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "train.json").unlink(), ["train.json", "put one there"]),
        (lambda d: (d / "test.json").write_text("{"), ["test.json", "not valid JSON"]),
        (lambda d: (d / "test.json").write_text("[]"), ["test.json", '"samples"']),
        (lambda d: first_picture(d).unlink(), ["1 of 48 images is missing"]),
        (lambda d: first_picture(d).write_bytes(b"no picture"), ["decoded", "skip_rejected=true"]),
        (
            lambda d: rewrite(
                d / "train.json", lambda c: c["samples"][0]["image_labels"].append("skyy")
            ),
            ["unknown label 'skyy'", "did you mean sky?"],
        ),
        (
            lambda d: [rewrite(d / f"{s}.json", take_all_labels) for s in ("train", "test")],
            ["no sample has any label"],
        ),
    ],
    ids=["no train.json", "bad JSON", "no object", "missing", "broken", "unknown", "no labels"],
)  # fmt: skip
def test_spoilt_data_is_named_in_one_line(data: Path, spoil: Tamper, words: list[str]) -> None:
    spoil(data)
    error = train_error(data)
    for word in words:
        assert word in error


def test_rejected_images_are_not_counted_for_a_step(data: Path) -> None:
    """40 images of train less 3 rejected ones and 6 of val; without the rejected ones less 6."""
    samples = json.loads((data / "train.json").read_text())["samples"]
    for sample in samples[:3]:
        (data / "images" / sample["image_name"]).write_bytes(b"no picture")
    options = {"skip_rejected": "true", "batch_size": "32", "cache": str(data.parent / "cache")}
    assert "train has 31 images, fewer than the 32 of a step" in train_error(data, **options)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "nowhere" in train_error(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": "-1"}, ["lr=-1", "above 0"]),
        ({"lr": "fast"}, ["lr='fast'", "a number"]),
        ({"dropout": "nan"}, ["dropout", "at least 0"]),
        ({"backbone": "resnext5_32x4d"}, ["unknown backbone", "resnext50_32x4d?"]),
        ({"loss": "bec"}, ["unknown loss", "bce"]),
        ({"device": "gpu"}, ["device='gpu'", "cuda"]),
        ({"val_fraction": "0"}, ["select_on=val", "select_on=last"]),
        ({"batch_size": "4096"}, ["fewer than the 4096 of a step", "lower batch_size=4096"]),
        ({"batch_size": "36"}, ["train has 34 images once 6 are held out as val", "36 of a step"]),
        ({"weights": "nowhere.pth"}, ["nowhere.pth"]),
        ({"registered_model": "team/tagger"}, ["'team/tagger'", "give e.g. team-tagger"]),
        ({"experiment": "nowhere.yaml"}, ["nowhere.yaml"]),
        ({"lrr": "1e-4"}, ["--lrr", "--lr"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named_in_one_line(
    tiny_data: Path, options: dict[str, str], words: list[str]
) -> None:
    error = train_error(tiny_data, **options)
    for word in words:
        assert word in error


def test_an_unknown_field_in_an_experiment_file_is_answered_with_the_nearest(
    tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("epoch: 3\n")
    error = train_error(tiny_data, experiment=str(tmp_path / "mine.yaml"))
    assert "unknown field 'epoch'" in error and "did you mean epochs?" in error


def test_imagenet_weights_without_a_network_say_what_to_do(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    error = train_error(tiny_data, weights="imagenet")
    assert "connect to the network" in error and "weights=FILE" in error


@pytest.mark.slow
def test_a_diverging_run_ends_as_failed_and_names_the_step(tiny_data: Path) -> None:
    error = train_error(tiny_data, lr="1e30", epochs="8")
    assert "at step" in error and "lower lr" in error
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert runs[0].info.status == "FAILED"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--thresholds", "label"], "for --scores: a model has its own"),
        (["--threshold_goal", "precision:0.9"], "for --scores: a model has its own"),
        (["--scores", "s.csv", "--threshold_goal", "f2"], "give thresholds=label or global"),
    ],
)
def test_options_of_evaluate_that_would_do_nothing_are_refused(
    options: list[str], words: str
) -> None:
    assert words in error_of("evaluate", *options)


@pytest.mark.parametrize("model", ["models:/nobody@champion", "models:/nobody/3", "nobody"])
@pytest.mark.parametrize("command", ["evaluate", "serve"])
def test_a_model_that_does_not_exist_is_named(command: str, model: str) -> None:
    assert "nobody" in error_of(command, "--model", model)


def test_runs_that_do_not_exist_are_named() -> None:
    assert "no run and no MLflow experiment 'abc'" in error_of("compare", "--runs", "abc,def")
    assert "a comparison needs two" in error_of("compare", "--runs", "Default")


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nuswide.deployment.serve.server.find_version", lambda uri: None)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        error = error_of("serve", "--port", port)
    assert port in error and "another --port" in error


def test_a_tracking_server_that_is_away_is_named(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        result = CliRunner().invoke(main, ["evaluate", "--data", str(tiny_data)])
    finally:
        mlflow.set_tracking_uri(before)
    assert result.exit_code == 1 and "127.0.0.1" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "own", "refused"),
    [
        ("train", {"experiment"}, set()),
        ("folds", {"experiment"}, {"fold", "resume"}),
        ("sweep", {"file", "trials", "storage", "name"}, {"resume"}),
    ],
)
def test_every_config_field_that_a_command_takes_is_an_option_of_it(
    command: str, own: set[str], refused: set[str]
) -> None:
    options = {option.name for option in main.commands[command].params}
    assert {f.name for f in fields(Config)} - refused | own == options
    for field in refused:
        done = CliRunner().invoke(main, [command, f"--{field}", "1"])
        assert done.exit_code == 2 and "No such option" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)])
def test_help_is_given_without_importing_torch_or_mlflow(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from nuswide.cli import main; main(sys.argv[1:], standalone_mode=False);"
        "print('heavy:', sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Usage:" in done.stdout and "heavy: []" in done.stdout


# prepare, audit and cache


def test_what_prepare_makes_trains_and_says_so(tiny_data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    done = workspace.in_process("prepare", str(tiny_data), "out", "--labels", "top:5")
    assert "out holds 40 train, 0 val, 8 test images with 5 labels" in done.stdout
    said = workspace.in_process("prepare", str(tiny_data), "out", check=False)
    assert said.returncode == 1 and "another folder" in said.stderr and "\n" not in said.stderr[:-1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "out"], 1, "there is no data folder nowhere"),
        (["{data}", "out", "--protocol", "oficial"], 2, "did you mean official?"),
        (["{data}", "out", "--protocol", "official"], 1, "has 81 labels, but the source has"),
        (["{data}", "out", "--labels", "top:0"], 2, "must name a number from 1 to"),
        (["{data}", "out", "--format", "cocoo"], 2, "did you mean coco?"),
        (["{data}", "out", "--split_file", "none.csv"], 1, "cannot read none.csv"),
    ],
)
def test_a_mistake_in_prepare_is_one_line(
    tiny_data: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    given = [argument.format(data=tiny_data) for argument in arguments]
    done = Workspace(tmp_path).in_process("prepare", *given, check=False)
    assert done.returncode == code and words in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_audit_writes_a_page_and_caches_are_listed_and_removed(
    tiny_data: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    said = workspace.in_process("audit", "--data", str(tiny_data), "--out", "out").stdout
    assert "pairs of images" in said and (tmp_path / "out/audit.html").is_file()
    listed = workspace.in_process("cache").stdout
    assert "48 images,   64 px" in listed and "complete" in listed
    assert workspace.in_process("cache", "--remove", "no such", check=False).returncode == 1
    key = listed.split()[0]
    assert f"removed {key}" in workspace.in_process("cache", "--remove", key).stdout
    assert "no caches in data/cache" in workspace.in_process("cache").stdout


@pytest.mark.parametrize(
    ("given", "n_folds"),
    [
        ([], 5),
        (["--val_fraction", "0"], 5),
        (["--experiment", "e.yaml", "--val_fraction", "0"], 3),
        (["--experiment", "e.yaml", "--folds", "2"], 2),
        (["--folds", "0"], 5),
    ],
)
def test_folds_are_five_unless_the_file_or_an_option_says_otherwise(
    given: list[str], n_folds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e.yaml").write_text("folds: 3\n")
    monkeypatch.chdir(tmp_path)
    begun: list[int] = []
    monkeypatch.setattr(
        "nuswide.training.folds.train_folds", lambda config, name: begun.append(config.folds)
    )
    done = CliRunner().invoke(main, ["folds", *given], catch_exceptions=False)
    assert done.exit_code == 0 and begun == [n_folds]


def test_annotations_without_pictures_are_audited_if_told(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,labels,split\na.jpg,sky,train\nb.jpg,sea,test\n")
    done = Workspace(tmp_path).in_process("audit", "--data", ".", "--pictures", "false")
    assert "not looked at" in done.stdout


def test_a_command_whose_extra_is_missing_names_it() -> None:
    words = r"needs optuna; pip install 'nuswide\[sweep\]'"
    with pytest.raises(click.ClickException, match=words), extra("sweep"):
        raise ImportError(name="optuna")
