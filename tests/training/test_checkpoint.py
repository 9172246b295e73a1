import os
import pickle
import threading
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from nuswide.training.checkpoint import LAST, CheckpointWriter, load, save, snapshot


def state(steps: int) -> dict[str, Any]:
    return {"progress": {"steps": steps}, "model": {"w": torch.full((3,), float(steps))}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / LAST, state(4))
    again = load(tmp_path / LAST)
    assert again["progress"] == {"steps": 4} and torch.equal(
        again["model"]["w"], torch.full((3,), 4.0)
    )
    assert os.listdir(tmp_path) == [LAST]


def test_a_full_disk_leaves_the_old_one_and_says_what_to_free(tmp_path: Path) -> None:
    save(tmp_path / LAST, state(1))
    (tmp_path / f"_{LAST}.new").symlink_to("/dev/full")
    with pytest.raises(click.ClickException, match="no room .* is unchanged; free some there"):
        save(tmp_path / LAST, state(2))
    assert load(tmp_path / LAST)["progress"]["steps"] == 1
    assert os.listdir(tmp_path) == [LAST]


def test_a_missing_folder_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="give checkpoints=DIR"):
        save(tmp_path / "nowhere" / LAST, state(1))


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"progress": {}, "model": Malice()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "short.pt").write_bytes(b"PK")
    for name in ("torch.pt", "plain.pt", "short.pt", "missing.pt"):
        with pytest.raises(click.ClickException, match="cannot read the checkpoint"):
            load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_another_file_of_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / LAST)
    with pytest.raises(click.ClickException, match="not a checkpoint"):
        load(tmp_path / LAST)


def test_a_snapshot_does_not_change_with_the_state() -> None:
    live = {"a": [torch.zeros(2), {"b": torch.zeros(1)}], "n": 1}
    copy = snapshot(live)
    live["a"][0].add_(1)
    live["a"][1]["b"].add_(1)
    assert copy["a"][0].sum() == 0 and copy["a"][1]["b"].sum() == 0 and copy["n"] == 1


def test_the_writer_saves_the_newest_before_it_ends_and_then_tells(tmp_path: Path) -> None:
    told: list[int] = []
    with CheckpointWriter(tmp_path / LAST) as writer:
        for steps in range(1, 9):
            writer.save(state(steps), then=lambda s=steps: told.append(s))
    assert load(tmp_path / LAST)["progress"]["steps"] == 8
    assert told == sorted(told) and told[-1] == 8


def test_training_goes_on_while_the_writer_saves(tmp_path: Path) -> None:
    release, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        release.wait(30)

    with CheckpointWriter(tmp_path / LAST) as writer:
        writer.save(state(1), then=wait)
        assert entered.wait(30)
        writer.save(state(2), then=lambda: None)  # returns although the first is not done
        release.set()
    assert load(tmp_path / LAST)["progress"]["steps"] == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    broken = state(3)
    broken["model"]["w"][1] = float("nan")
    with pytest.raises(click.ClickException, match="after step 3 .*not saved"):
        with CheckpointWriter(tmp_path / LAST) as writer:
            writer.save(state(2), then=lambda: None)
            while not (tmp_path / LAST).exists():
                pass
            writer.save(broken, then=lambda: None)
    assert load(tmp_path / LAST)["progress"]["steps"] == 2


def test_a_last_checkpoint_that_cannot_be_saved_is_told_when_training_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        with CheckpointWriter(tmp_path / "nowhere" / LAST) as writer:
            writer.save(state(1), then=lambda: None)
            raise KeyboardInterrupt
    assert "the last checkpoint was not saved: cannot save" in capsys.readouterr().err
