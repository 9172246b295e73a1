"""`nuswide evaluate`, as far as it opens a model's data: its splits and its missing images."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from conftest import TINY, Registered, Workspace, run_id_of

from nuswide.data import splits
from nuswide.data.dataset import load_manifest
from nuswide.data.manifest import Manifest
from nuswide.data.splits import carve_val, hold_out, splits_csv
from nuswide.evaluation.commands import open_as_trained
from nuswide.metrics import NINE
from nuswide.tagger import Preprocessing
from nuswide.tracking import reader


@pytest.mark.parametrize(
    ("recorded", "fraction", "seed"),
    [
        ({"val_fraction": 0.25, "seed": 3, "split_seed": 5}, 0.25, 5),
        ({"val_fraction": 0.25, "seed": 3}, 0.25, 3),  # before split_seed, seed split val off
        ({}, 0.15, 0),
    ],
)
def test_val_is_that_of_training_also_of_a_model_older_than_a_field(
    recorded: dict[str, float], fraction: float, seed: int, tiny_data: Path, tmp_path: Path
) -> None:
    tagger = SimpleNamespace(config=recorded, preprocessing=Preprocessing(32))
    whole = open_as_trained(SimpleNamespace(run_id=None), tagger, str(tiny_data), tmp_path)
    expected = carve_val(load_manifest(str(tiny_data)), fraction=fraction, seed=seed)
    assert np.array_equal(whole.manifest.splits, expected.splits)


@pytest.fixture
def unsplit(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data set as one CSV without a column of splits."""
    return write_table(load_manifest(str(tiny_data)), tmp_path / "unsplit")


def write_table(
    manifest: Manifest, folder: Path, split_of: Callable[[int], str] | None = None
) -> Path:
    folder.mkdir()
    (folder / "images").symlink_to(manifest.root)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels", *(["split"] if split_of else [])])
        for i, (name, row) in enumerate(zip(manifest.names, manifest.targets, strict=True)):
            labels = ";".join(manifest.labels[c] for c in np.flatnonzero(row))
            writer.writerow([name, labels, *([split_of(i)] if split_of else [])])
    return folder


def never(*arguments: object) -> None:
    raise AssertionError("a split was searched for")


VERSION = SimpleNamespace(run_id="run", name="tagger", version="1")


def test_the_splits_that_the_run_recorded_are_read_and_not_searched_again(
    unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on = hold_out(
        load_manifest(str(unsplit)), test_fraction=0.25, val_fraction=0.25, seed=9
    )
    monkeypatch.setattr(reader, "fetch_text", lambda run, name: splits_csv(trained_on))
    monkeypatch.setattr(splits, "stratify", never)
    tagger = SimpleNamespace(config={}, preprocessing=Preprocessing(32))
    whole = open_as_trained(VERSION, tagger, str(unsplit), tmp_path / "cache")
    assert whole.manifest.digest == trained_on.digest


def test_no_test_is_split_off_other_data_than_the_model_was_trained_on(
    unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have images of the model's train."""
    manifest = load_manifest(str(unsplit)).take(np.arange(40))  # then 8 images were added
    trained_on = hold_out(manifest, test_fraction=0.25, val_fraction=0.25, seed=0)
    monkeypatch.setattr(reader, "fetch_text", lambda run, name: splits_csv(trained_on))
    config = {"test_fraction": 0.25}
    tagger = SimpleNamespace(config=config, preprocessing=Preprocessing(32))
    cache = tmp_path / "cache"
    whole = open_as_trained(VERSION, tagger, str(unsplit), cache, is_for_test=True)
    assert not len(whole.of("test"))


def test_no_val_is_split_off_for_test_nor_off_data_that_has_no_train(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "fetch_text", lambda run, name: None)
    tagger = SimpleNamespace(config={}, preprocessing=Preprocessing(32))
    cache = tmp_path / "cache"
    whole = open_as_trained(VERSION, tagger, str(tiny_data), cache, is_for_test=True)
    assert not len(whole.of("val"))
    only_test = write_table(load_manifest(str(tiny_data)), tmp_path / "t", lambda i: "test")
    whole = open_as_trained(VERSION, tagger, str(only_test), cache)
    assert set(whole.manifest.splits) == {"test"}


@pytest.mark.slow
def test_a_model_is_evaluated_on_a_set_that_has_test_images_only(
    registered: Registered, tiny_data: Path, tmp_path: Path
) -> None:
    manifest = load_manifest(str(tiny_data)).take(np.arange(12))
    named = manifest.take_labels(manifest.labels[:2])
    data = write_table(
        Manifest(named.root, named.names, ("sky", "sea"), named.targets, named.splits),
        tmp_path / "t",
        lambda i: "test",
    )
    evaluate = ("evaluate", "--model", registered.uri, "--data", str(data))
    done = registered.workspace.in_process(*evaluate)
    assert "sky" not in done.stderr and run_id_of(done)
    refused = registered.workspace.in_process(*evaluate, "--split", "val", check=False)
    assert refused.returncode == 1 and "has no val images" in refused.stderr
    (data / "images").unlink()
    (data / "images").mkdir()
    for name in manifest.names[1:]:
        (data / "images" / name).symlink_to(manifest.root / name)
    refused = registered.workspace.in_process(*evaluate, check=False)
    assert "1 of 12 images is missing" in refused.stderr
    registered.workspace.in_process(*evaluate, "--skip_rejected", "true")


@pytest.mark.slow
def test_data_without_a_split_is_trained_on_and_evaluated_with_the_splits_of_the_run(
    unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    given = {**TINY, "epochs": "1", "data": str(unsplit)}
    options = [x for name, value in given.items() for x in (f"--{name}", value)]
    refused = workspace.in_process("train", *options, check=False)
    assert refused.returncode == 1 and "give test_fraction=0.2" in refused.stderr
    done = workspace.in_process("train", *options, "--test_fraction", "0.25")
    with workspace.tracked():
        trained = mlflow.get_run(run_id_of(done))
        assert trained.data.tags["data.protocol"] == "source, test_fraction=0.25 by seed 0"
        recorded = reader.fetch_splits(trained.info.run_id)
        assert recorded and sorted(recorded.values()).count("test") == 12
        monkeypatch.setattr(splits, "stratify", never)
        for split in ("val", "test"):
            evaluate = ("evaluate", "--data", str(unsplit), "--split", split)
            again = mlflow.get_run(run_id_of(workspace.in_process(*evaluate)))
            for name in ("map", *NINE):
                key = f"{split}/{name}"
                assert again.data.metrics[key] == pytest.approx(
                    trained.data.metrics[key], abs=1e-4
                ), key
            assert (
                again.data.tags[f"data.{split}_digest"] == trained.data.tags[f"data.{split}_digest"]
            )
