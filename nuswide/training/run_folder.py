"""The folder of a run, with its last checkpoint, and the choice of the run to resume.

Owns the folder's about.json and lock. Never trains.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from nuswide.config import Config, known_fields, may_differ, with_defaults
from nuswide.core import distributed, files
from nuswide.data.dataset import Dataset
from nuswide.tracking.run import fetch_checkpoint, is_open
from nuswide.training.checkpoint import LAST, State, load
from nuswide.values import convert

_ABOUT = "about.json"


def describe(config: Config, data: Dataset) -> dict[str, Any]:
    """Return what a resumed run must have in common with its first part."""
    return _fixed(asdict(config)) | {
        "digest": data.manifest.digest,
        "images_digest": data.images_digest,
        "processes": distributed.world_size(),
    }


def _fixed(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a resumed run may not change."""
    return {k: v for k, v in fields.items() if k not in may_differ("resume")}


def write_about(folder: Path, config: Config, data: Dataset, *, is_recorded: bool) -> None:
    """Write what a run trains, and whether all of it is recorded in MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "config": asdict(config), "same": describe(config, data), "launch": distributed.launch(),
        "recorded": is_recorded,
    }  # fmt: skip
    with files.atomic_write(folder / _ABOUT) as file:
        json.dump(about, file, indent=1)


def read_about(folder: Path) -> dict[str, Any]:
    """Read what write_about wrote; raises click.ClickException if it is not there, or damaged."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        if not all(isinstance(about[key], dict) for key in ("config", "same")):
            raise TypeError("it is not of a run")
        _check_types(about["same"])
        _check_types(about["config"])
        Config(**known_fields(about["config"]))  # checks the ranges
        _ = about["recorded"], about["launch"]
    except FileNotFoundError as error:
        raise click.ClickException(
            f"{folder} is no folder of a run; {folder.parent} holds: "
            f"{', '.join(other.name for other in _folders(folder.parent)) or 'none'}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(
            f"{folder / _ABOUT} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return about


def _check_types(recorded: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is not of its field's type; unknown fields are ignored."""
    for f in fields(Config):
        value = recorded.get(f.name, f.default)
        if convert(f.name, value, f.type) != value:
            raise ValueError(f"{f.name}={value!r} has another type")


def recorded_fields(config: Config) -> dict[str, Any]:
    """Return the fields of the run that `resume` names, completed; {} where it names none."""
    if config.resume in ("none", "auto"):
        return {}
    folder = Path(config.checkpoints) / config.resume
    if (folder / _ABOUT).exists():
        return with_defaults(read_about(folder)["config"])
    return with_defaults(_fetch_last(folder)["config"])


def find(config: Config, data: Dataset) -> tuple[str, State | None] | None:
    """Return the ID and the last state of the run to resume; None for a new run.

    The state is None for a run that was killed before its first checkpoint, which starts again.
    Raises click.ClickException if the run named by `resume` cannot be resumed.
    """
    checkpoints = Path(config.checkpoints)
    if config.resume not in ("none", "auto"):
        return config.resume, _load_named(checkpoints / config.resume, config, data)
    if config.resume == "none" and not distributed.is_restarted():
        return None
    for folder in _folders(checkpoints):
        try:
            if _is_continued_by(config, data, folder):
                return folder.name, _load_last(folder)
        except click.ClickException as error:
            click.echo(f"passed over: {error.message}")
    return None


def _is_continued_by(config: Config, data: Dataset, folder: Path) -> bool:
    """Return whether a folder is of an unfinished run that resume=auto or this launch continues."""
    about = read_about(folder)
    is_wanted = config.resume == "auto" or about["launch"] == distributed.launch()
    if about["recorded"] or not is_wanted or _differences(about["same"], describe(config, data)):
        return False
    return is_open(folder.name)


def _folders(checkpoints: Path) -> list[Path]:
    """Return the folders of runs, the one written last first."""
    found = checkpoints.glob(f"*/{_ABOUT}")
    return [about.parent for about in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _load_last(folder: Path) -> State | None:
    return load(folder / LAST) if (folder / LAST).exists() else None


def _fetch_last(folder: Path) -> State:
    """Load the state of a run that another machine trained; it is downloaded once."""
    if not (folder / LAST).exists():
        fetch_checkpoint(folder.name, folder)
    return load(folder / LAST)


def _load_named(folder: Path, config: Config, data: Dataset) -> State | None:
    state: State | None
    if (folder / _ABOUT).exists():
        state, same = _load_last(folder), read_about(folder)["same"]
    else:
        state = _fetch_last(folder)
        state["mark"] = 0  # the outbox stayed on the other machine
        own = {"digest": state["digest"], "processes": state["world_size"]}
        same = _fixed(state["config"]) | own
    if changed := _differences(same, describe(config, data)):
        raise click.UsageError(
            f"run {folder.name} cannot be resumed with another configuration: "
            f"{'; '.join(changed)}; give its own values"
        )
    return state


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a text for each difference, less an increase of epochs that changes no earlier step.

    before: as recorded, perhaps by a version with fewer fields, or without images_digest.
    """
    before = {"images_digest": now["images_digest"], **_fixed(with_defaults(before))}
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)}
    follows_epochs = (
        now["schedule"] != "constant" or now["start_size_px"]
    )  # epochs change its every step
    if not follows_epochs and now["epochs"] > before["epochs"]:
        changed.discard("epochs")
    return [f"{k} was {before.get(k)}, is {now.get(k)}" for k in sorted(changed)]


def exclusive_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run, so that no other process trains it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training run {folder.name}; wait for it, or stop it"
    return files.exclusive_lock(folder / "lock", busy=busy)


def is_resumable(folder: Path) -> bool:
    """Whether a run's state is on this machine, undamaged, and no process is training it."""
    try:
        read_about(folder)
        with exclusive_lock(folder):
            return True
    except click.ClickException:
        return False
