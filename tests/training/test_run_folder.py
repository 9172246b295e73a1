"""Which run is resumed, decided by what its folder records."""

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from nuswide.config import Config
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.training import run_folder
from nuswide.training.pipeline import upload_run
from nuswide.training.run_folder import find, is_resumable, recorded_fields, write_about

MANIFEST = Manifest(
    Path(), ("a.jpg", "b.jpg"), ("sky",), np.eye(2, 1, dtype=np.uint8), np.array(["train"] * 2)
)
IMAGES = np.zeros((2, 3, 32, 32), np.uint8)
DATA = Dataset(MANIFEST, IMAGES, np.arange(2), contents=np.array([5, 6], np.uint64))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a run `old`, which was killed before its first checkpoint."""
    monkeypatch.setattr(run_folder, "is_open", lambda run_id: True)
    config = Config(checkpoints=str(tmp_path), device="cpu", resume="auto")
    write_about(tmp_path / "old", config, DATA, is_recorded=False)
    return config


def test_a_run_is_resumed_on_other_hardware(config: Config) -> None:
    moved = replace(config, device="cuda", compile="on", feed="blocks", cuda_graph=True)
    assert find(moved, DATA) == ("old", None)


@pytest.mark.parametrize("other", [{"lr": 0.5}, {"seed": 1}, {"precision": "bf16"}])
def test_a_run_of_another_recipe_is_not_resumed(config: Config, other: dict[str, object]) -> None:
    assert find(replace(config, **other), DATA) is None


def test_a_run_on_other_images_of_equal_names_is_not_resumed(config: Config) -> None:
    swapped = replace(DATA, contents=np.array([6, 5], np.uint64))
    assert find(config, swapped) is None
    with pytest.raises(click.UsageError, match="images_digest was"):
        find(replace(config, resume="old"), swapped)


def test_a_run_recorded_before_a_field_existed_has_its_default(config: Config) -> None:
    path = Path(config.checkpoints) / "old" / "about.json"
    about = json.loads(path.read_text())
    del about["same"]["test_flips"], about["same"]["images_digest"]
    del about["config"]["cuda_graph"]
    path.write_text(json.dumps(about))
    assert find(config, DATA) == ("old", None)
    assert find(replace(config, test_flips=True), DATA) is None


DAMAGED = [
    "",
    '{"config": {',
    "[]",
    '"text"',
    '{"name": "of another program"}',
    '{"config": 1, "same": 2}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_the_run_of_a_damaged_folder_is_not_resumable(config: Config, text: str) -> None:
    folder = Path(config.checkpoints) / "old"
    assert is_resumable(folder)
    (folder / "about.json").write_text(text)
    assert not is_resumable(folder)
    assert not is_resumable(folder.with_name("none"))


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_or_foreign_folder_is_passed_over_and_named(
    config: Config, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = Path(config.checkpoints) / "foreign"
    foreign.mkdir()
    (foreign / "about.json").write_text(text)
    assert find(config, DATA) == ("old", None)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"passed over: {foreign / 'about.json'} cannot be read (")
    assert find(replace(config, resume="none"), DATA) is None
    assert not capsys.readouterr().out
    with pytest.raises(click.ClickException, match=r"foreign/about\.json cannot be read"):
        find(replace(config, resume="foreign"), DATA)


@pytest.mark.parametrize(
    ("part", "field", "reason"),
    [
        ("config", {"mean": 5}, "mean=5 has another type"),
        ("config", {"mean": "5"}, "mean='5' is not auto or three numbers"),
        ("config", {"lr": "fast"}, "lr='fast' is not a number"),
        ("config", {"backbone": None}, "backbone=None is not text"),
        ("config", {"epochs": True}, "epochs=True is not a whole number"),
        ("same", {"epochs": "35"}, "epochs='35' has another type"),
    ],
)
def test_a_value_of_another_type_is_an_error_in_one_line(
    config: Config, part: str, field: dict[str, object], reason: str
) -> None:
    folder = Path(config.checkpoints) / "old"
    about = json.loads((folder / "about.json").read_text())
    about[part] |= field
    (folder / "about.json").write_text(json.dumps(about))
    for use in (recorded_fields, lambda config: find(config, DATA)):
        with pytest.raises(click.ClickException, match=r"about\.json cannot be read \(") as raised:
            use(replace(config, resume="old"))
        assert reason in raised.value.message and "\n" not in raised.value.message
    with pytest.raises(click.ClickException, match=r"about\.json cannot be read"):
        upload_run("old", Path(config.checkpoints))


def test_a_run_whose_checkpoint_is_damaged_is_passed_over_unless_it_is_named(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(config.checkpoints) / "old" / "last.pt").write_bytes(b"")
    assert find(config, DATA) is None
    assert capsys.readouterr().out.startswith("passed over: cannot read the checkpoint ")
    with pytest.raises(click.ClickException, match="cannot read the checkpoint"):
        find(replace(config, resume="old"), DATA)


def test_a_fetched_checkpoint_without_a_field_of_today_is_resumed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {f: v for f, v in vars(config).items() if f not in ("cuda_graph", "test_flips")}
    state = {"config": before, "digest": MANIFEST.digest, "world_size": 1, "mark": 7}

    def fetch(run_id: str, folder: Path) -> None:
        folder.mkdir()
        torch.save(state, folder / "last.pt")

    monkeypatch.setattr(run_folder, "fetch_checkpoint", fetch)
    monkeypatch.setattr(run_folder, "load", lambda path: torch.load(path, weights_only=True))
    run_id, found = find(replace(config, resume="remote"), DATA) or ("", None)
    assert run_id == "remote" and found and found["mark"] == 0
    with pytest.raises(click.UsageError, match="test_flips was False, is True"):
        find(replace(config, resume="remote2", test_flips=True), DATA)
