from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import click
import pytest

from nuswide.config import (
    Config,
    known_fields,
    load_config,
    lookup,
    may_differ,
    unknown_name,
    with_defaults,
)
from nuswide.models.backbones import BACKBONES
from nuswide.models.heads import HEADS
from nuswide.models.losses import LOSSES


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(overrides: dict[str, Any], experiment: Path | None = None) -> str:
    """What a user reads: one line, of a click.UsageError."""
    with pytest.raises(click.UsageError) as caught:
        load_config(experiment, overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_an_option_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 0.01\nepochs: 3\n")
    config = load_config(path, {"lr": "0.5"})
    assert (config.lr, config.epochs, config.batch_size) == (0.5, 3, Config().batch_size)


def test_no_file_and_no_options_give_the_defaults(tmp_path: Path) -> None:
    assert load_config(None, {}) == Config()
    assert load_config(write(tmp_path, "# nothing but a header\n"), {}) == Config()


def test_the_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "'1e-4'", "1.0e-4"])
def test_a_number_in_any_spelling_is_a_number_in_yaml(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, f"lr: {text}\n"), {})
    assert config.lr == 1e-4 and isinstance(config.lr, float)


def test_options_become_the_types_of_their_fields() -> None:
    config = load_config(None, {"lr": "1", "epochs": "7", "rotate_deg": 5, "select_on": "last"})
    assert (config.lr, config.epochs, config.rotate_deg) == (1.0, 7, 5.0)
    assert isinstance(config.lr, float) and isinstance(config.rotate_deg, float)
    assert config.select_on == "last"


def test_a_number_is_text_where_text_is_wanted() -> None:
    assert load_config(None, {"data": 2024}).data == "2024"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", -1, "at least 1"),
        ("lr", 0, "above 0"),
        ("lr", -1e-9, "above 0"),
        ("dropout", 0.951, "at least 0 and at most 0.95"),
        ("val_fraction", 0.51, "at most 0.5"),
        ("image_size_px", 31, "0 or at least 32"),
        ("image_size_px", 1025, "at most 1024"),
        ("threshold", -0.001, "at least 0 and at most 1"),
        ("lr", float("nan"), "above 0"),
        ("dropout", "nan", "at most 0.95"),
        ("lr", float("inf"), "above 0"),
        ("scale_max", ".inf", "a number"),
        ("scale_max", "inf", "above 0"),
        ("scale_min", "-inf", "above 0"),
        ("seed", 2**31, "at most 2147483647"),
    ],
)
def test_out_of_range_is_refused_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    message = error_of({name: value})
    assert message.startswith(f"{name}=") and allowed in message


@pytest.mark.parametrize("field", ["thresholds=label", "thresholds=global", "calibration=platt"])
def test_what_is_fitted_on_val_needs_a_val_split(field: str) -> None:
    name, value = field.split("=")
    without_val = {"val_fraction": 0, "select_on": "last"}
    assert f"{field} is fitted on val" in error_of({name: value, **without_val})
    load_config(None, {"thresholds": "auto", **without_val})
    load_config(None, {name: value, "val_fraction": 0, "folds": 2})  # a fold is val


@pytest.mark.parametrize(
    ("start", "full", "instead"), [(100, 256, 128), (288, 256, 128), (16, 64, 32), (64, 50, 32)]
)
def test_a_start_size_is_a_multiple_of_32_up_to_the_full_one(
    start: int, full: int, instead: int
) -> None:
    message = error_of({"start_size_px": start, "image_size_px": full})
    assert f"start_size_px={start} is no multiple of 32 up to image_size_px={full}" in message
    assert f"e.g. {instead}, or 0" in message
    for fits in (instead, 0):
        load_config(None, {"start_size_px": fits, "image_size_px": full})


@pytest.mark.parametrize("goal", ["f1", "f2", "f0.5", "precision:0.9", "precision:1"])
def test_a_threshold_goal_is_an_f_beta_or_a_precision(goal: str) -> None:
    assert load_config(None, {"threshold_goal": goal}).threshold_goal == goal


@pytest.mark.parametrize(
    "goal", ["f", "f0", "f-1", "fnan", "finf", "0.9", "precision", "precision:", "precision:1.1",
             "precision:0", "precision:nan", "recall:0.9", ""],
)  # fmt: skip
def test_another_threshold_goal_is_refused_with_examples(goal: str) -> None:
    assert "give e.g. f1, f2, f0.5 or precision:0.9" in error_of({"threshold_goal": goal})


@pytest.mark.parametrize(
    "fixed", [{"thresholds": "fixed"}, {"val_fraction": 0, "select_on": "last"}]
)
def test_a_threshold_goal_without_fitted_thresholds_is_refused(fixed: dict[str, Any]) -> None:
    message = error_of({"threshold_goal": "f2", **fixed})
    assert "threshold_goal=f2" in message and "thresholds=label" in message


def test_infinity_is_said_to_be_the_trouble() -> None:
    assert error_of({"lr": "inf"}).endswith("it must be above 0 and finite")


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 1), ("dropout", 0.95), ("dropout", 0), ("val_fraction", 0.5), ("lr", 5e-324)],
)
def test_the_ends_of_a_range_are_allowed(name: str, value: float) -> None:
    assert getattr(load_config(None, {name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", "many", "a whole number"),
        ("epochs", 1.5, "a whole number"),
        ("epochs", "1.5", "a whole number"),
        ("epochs", 2.0, "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", None, "a whole number"),
        ("lr", "fast", "a number"),
        ("lr", True, "a number"),
        ("lr", "", "a number"),
        ("lr", [1], "a number"),
        ("lr", date(2024, 1, 2), "a number"),
        ("epochs", date(2024, 1, 2), "a whole number"),
        ("data", None, "text"),
        ("data", {"a": 1}, "text"),
        ("data", False, "text"),
        ("select_on", True, "text"),
    ],
)
def test_a_wrong_type_is_refused_with_the_wanted_one(name: str, value: Any, wanted: str) -> None:
    message = error_of({name: value})
    assert message.startswith(f"{name}=") and message.endswith(f"is not {wanted}")


def test_a_wrong_type_in_python_is_refused_too() -> None:
    with pytest.raises(ValueError, match="select_on='both' is not one of val, test, last"):
        Config(select_on="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epochs=0 is out of range; it must be at least 1"):
        Config(epochs=0)


def test_a_choice_is_refused_with_the_choices() -> None:
    assert error_of({"device": "tpu"}) == "device='tpu' is not one of auto, cpu, cuda, mps"


@pytest.mark.parametrize(
    ("name", "near"), [("learning_rte", None), ("batchsize", "batch_size"), ("epoch", "epochs")]
)
def test_an_unknown_field_names_the_nearest_one(
    tmp_path: Path, name: str, near: str | None
) -> None:
    for message in (error_of({name: 1}), error_of({}, write(tmp_path, f"{name}: 1\n"))):
        assert repr(name) in message
        if near:
            assert f"did you mean {near}?" in message
        else:
            names = [field.name for field in fields(Config)]
            assert all(name in message for name in names[:40])
            assert f"({len(names)} in all)" in message


def test_a_key_of_yaml_that_is_no_text_is_an_unknown_field(tmp_path: Path) -> None:
    assert "unknown field 7" in error_of({}, write(tmp_path, "7: 1\n"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"select_on": "val", "val_fraction": 0}, ["select_on", "val_fraction"]),
        ({"select_on": "test", "test_freq": 0}, ["select_on", "test_freq"]),
        ({"scale_min": 2, "scale_max": 1}, ["scale_min", "scale_max"]),
        ({"patience_epochs": 3, "select_on": "last"}, ["patience_epochs", "select_on=val"]),
        ({"fold": 1}, ["fold=1 of folds=0 is none"]),
        ({"folds": 3, "fold": 3}, ["fold=3 of folds=3", "from 0 to folds - 1"]),
        ({"folds": 1}, ["folds=1", "folds=2 or more"]),
    ],
)
def test_a_contradiction_names_both_fields(overrides: dict[str, Any], named: list[str]) -> None:
    message = error_of(overrides)
    assert all(name in message for name in named)


def test_channels_may_be_a_list(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "mean: [0.5, 0.5, 0]\nstd: [0.001, 1, 1]\n"), {})
    assert (config.mean, config.std) == ("0.5,0.5,0", "0.001,1,1")
    message = error_of({}, write(tmp_path, "mean: [0.5, 0.5]\n"))
    assert "mean='0.5,0.5' is not auto or three numbers from 0 to 1, as in 0.485" in message
    assert "epochs=[5] is not a whole number" in error_of({}, write(tmp_path, "epochs: [5]\n"))


def test_contradictions_are_judged_on_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "val_fraction: 0\n")
    assert "select_on" in error_of({}, path)
    assert load_config(path, {"select_on": "last"}).val_fraction == 0
    assert load_config(path, {"select_on": "test", "test_freq": 10}).test_freq == 10
    assert load_config(None, {"scale_min": 1, "scale_max": 1}).scale_min == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: [1, 2\n", "is not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("lr: !!python/name:os.getcwd\n", "is not valid YAML"),
        ("[]\n", "must hold `field: value` lines"),
        ("0\n", "must hold `field: value` lines"),
        ("- lr\n- epochs\n", "must hold `field: value` lines"),
        ("just a text", "must hold `field: value` lines"),
        ("[[[[{}" * 500, "is not valid YAML"),
        ("[" * 2000, "is not valid YAML"),
        ("lr: 2024-13-45\n", "is not valid YAML"),
        ("a: &a [*a]\n", "unknown field"),
        ("lr: 1\x00", "is not valid YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    message = error_of({}, path)
    assert said in message
    assert str(path) in message or said == "unknown field"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    for path in (missing, tmp_path):
        assert str(path) in error_of({}, path)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert str(path) in error_of({}, path)


def test_a_file_builds_on_another_named_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    write(tmp_path, "lr: 0.01\nepochs: 3\nloss: focal\n")
    path = write(tmp_path / "losses", "experiment: ../experiment.yaml\nloss: asl\n")
    config = load_config(path, {"epochs": 4})
    assert config == Config(lr=0.01, epochs=4, loss="asl")
    again = tmp_path / "again.yaml"
    again.write_text("experiment: losses/experiment.yaml\nlr: 0.02\n")
    assert load_config(again, {}) == Config(lr=0.02, epochs=3, loss="asl")


@pytest.mark.parametrize("name", ["experiment.yaml", "./experiment.yaml", "../a/experiment.yaml"])
def test_a_file_that_builds_on_itself_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    assert "which builds on itself" in error_of({}, write(tmp_path / "a", f"experiment: {name}\n"))


def test_files_that_build_on_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "experiment: other.yaml\n")
    (tmp_path / "other.yaml").write_text("experiment: experiment.yaml\n")
    assert "which builds on itself" in error_of({}, path)


@pytest.mark.parametrize("name", ["none.yaml", "7", "[a.yaml, b.yaml]", ".", "null"])
def test_a_base_that_cannot_be_read_is_named_together_with_its_file(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, f"experiment: {name}\n")
    message = error_of({}, path)
    assert f"{path} builds on {tmp_path}" in message and "cannot read the experiment" in message


def test_every_field_has_a_sentence_of_help() -> None:
    for field in fields(Config):
        help_text = field.metadata["help"]
        assert len(help_text) > 1 and help_text.endswith("."), field.name


ROLES = {
    "split": {
        "val_fraction", "folds", "fold", "test_fraction", "split_seed", "select_on",
    },
    "seed": {"seed"},
    "hardware": {"device", "compile", "cache_features", "cuda_graph", "feed", "grad_checkpointing"},
    "data": {"data", "cache", "skip_rejected"},
    "record": {"resume", "checkpoints", "checkpoint_minutes", "upload_minutes", "registered_model"},
}  # fmt: skip
NAMES = {field.name for field in fields(Config)}
ROLES["recipe"] = NAMES - set().union(*ROLES.values())


def test_every_field_has_the_role_that_it_is_meant_to_have() -> None:
    for field in fields(Config):
        assert field.name in ROLES[field.metadata["role"]]
    assert {"lr", "loss", "batch_size", "precision", "sync_batchnorm"} < ROLES["recipe"]


@pytest.mark.parametrize(
    ("role", "resume", "compare", "sweep", "reproduce"),
    [
        ("recipe", False, False, True, False),
        ("split", False, False, False, False),
        ("seed", False, True, True, False),
        ("hardware", True, True, True, False),
        ("data", True, True, False, True),
        ("record", True, True, False, True),
    ],
)
def test_a_role_says_between_which_runs_its_fields_may_differ(
    role: str, resume: bool, compare: bool, sweep: bool, reproduce: bool
) -> None:
    names = ROLES[role]
    for relation, expected in (
        (may_differ("resume"), resume), (may_differ("compare"), compare),
        (may_differ("sweep"), sweep), (may_differ("reproduce"), reproduce),
    ):  # fmt: skip
        assert relation & names == (names if expected else set())


def test_fields_that_a_record_does_not_have_are_the_defaults() -> None:
    completed = with_defaults({"lr": "0.5", "digest": "abc"})
    assert (completed["lr"], completed["digest"]) == ("0.5", "abc")
    assert completed["test_flips"] is False and NAMES < completed.keys()
    assert set(known_fields({"lr": "0.5", "digest": "abc"})) == NAMES


def test_val_was_split_by_seed_before_split_seed_existed() -> None:
    assert known_fields({"seed": 3})["split_seed"] == 3
    assert known_fields({"seed": 3, "split_seed": 0})["split_seed"] == 0
    assert known_fields({})["split_seed"] == 0


@pytest.mark.parametrize(
    ("name", "registry"), [("backbone", BACKBONES), ("head", HEADS), ("loss", LOSSES)]
)
def test_the_help_names_every_entry_of_its_registry(name: str, registry: dict[str, Any]) -> None:
    field = next(f for f in fields(Config) if f.name == name)
    named = field.metadata["help"].replace(",", " ").replace(".", " ").split()
    assert set(registry) <= set(named)
    assert field.default in registry


def test_pick_gives_the_entry() -> None:
    assert lookup({"a": 1, "b": 2}, "letter", "b") == 2


def test_pick_names_the_nearest_or_all() -> None:
    known = {"linear": 1, "attention": 2}
    with pytest.raises(click.UsageError, match=r"unknown head 'liner'; did you mean linear\?"):
        lookup(known, "head", "liner")
    with pytest.raises(click.UsageError, match=r"unknown head 'x'; known: linear, attention"):
        lookup(known, "head", "x")


def test_unknown_name_stays_on_one_line() -> None:
    assert "\n" not in unknown_name("field", "a\nb", {"c": 1})
