"""The local side of runs: a folder each, with the state to resume from.

Owns the folder's about.json and last.pt, and the choice of what to resume. Never trains.

    place, state = begin(config, data)  # state is None for a new run
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nuswide.config import Config, may_differ, with_defaults
from nuswide.core import distributed, files
from nuswide.data.manifest import Manifest
from nuswide.tracking.run import fetch_checkpoint, is_open
from nuswide.training.checkpoint import LAST, State, load

_ABOUT = "about.json"


def describe(config: Config, data: Manifest) -> dict[str, Any]:
    """What must be the same for a run to be gone on with."""
    return _fixed(asdict(config)) | {"digest": data.digest, "processes": distributed.world_size()}


def _fixed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that a resumed run must share."""
    return {k: v for k, v in fields.items() if k not in may_differ("resume")}


def write_about(folder: Path, config: Config, data: Manifest, *, is_recorded: bool) -> None:
    """Note in a run's folder what it trains, and whether all of it is in the record."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "config": asdict(config), "same": describe(config, data), "launch": distributed.launch(),
        "recorded": is_recorded,
    }  # fmt: skip
    with files.atomic_write(folder / _ABOUT) as file:
        json.dump(about, file, indent=1)


def read_about(folder: Path) -> dict[str, Any]:
    """Read what write_about wrote; raises click.ClickException if there is nothing."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{folder} is no folder of a run; {folder.parent} holds: "
            f"{', '.join(place.name for place in _folders(folder.parent)) or 'none'}"
        ) from error
    return about


def find(config: Config, data: Manifest) -> tuple[str, State | None] | None:
    """Choose the run to go on with, and its last state; None for a new one.

    A run that was killed before its first checkpoint is gone on with from the start, with no state.
    Raises click.ClickException if the run that was asked for can't be gone on with.
    """
    folder = Path(config.checkpoints)
    if config.resume not in ("none", "auto"):
        return config.resume, _load_asked(folder / config.resume, config, data)
    for place in _folders(folder):
        about = read_about(place)
        is_own = distributed.is_restarted() and about["launch"] == distributed.launch()
        if about["recorded"] or not (config.resume == "auto" or is_own):
            continue
        if not _differences(about["same"], describe(config, data)) and is_open(place.name):
            return place.name, load(place / LAST) if (place / LAST).exists() else None
    return None


def _folders(folder: Path) -> list[Path]:
    """The runs' folders, the one written last first."""
    found = folder.glob(f"*/{_ABOUT}")
    return [about.parent for about in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _load_asked(place: Path, config: Config, data: Manifest) -> State | None:
    is_here = (place / _ABOUT).exists()
    if not is_here:
        fetch_checkpoint(place.name, place)
    state = load(place / LAST) if (place / LAST).exists() else None
    if is_here:
        same = read_about(place)["same"]
    else:
        assert state is not None
        state["mark"] = 0  # the spool stayed on the other machine
        same = _fixed(state["config"]) | {
            "digest": state["digest"],
            "processes": state["world_size"],
        }
    if changed := _differences(same, describe(config, data)):
        raise click.UsageError(
            f"run {place.name} can't be resumed with another configuration: "
            f"{'; '.join(changed)}; give its own values"
        )
    return state


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what differs, unless it only makes training longer.

    before: as recorded, perhaps by a version that did not have all the fields of today.
    """
    before = _fixed(with_defaults(before))
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)}
    follows_epochs = now["schedule"] != "constant" or now["start_size_px"]  # of the whole training
    if not follows_epochs and now["epochs"] > before["epochs"]:
        changed.discard("epochs")
    return [f"{k} was {before.get(k)}, is {now.get(k)}" for k in sorted(changed)]


def exclusive_lock(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from training the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training run {folder.name}; wait for it, or stop it"
    return files.exclusive_lock(folder / "lock", busy=busy)
