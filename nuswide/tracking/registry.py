"""The model registry: versions, their tags, the alias champion and its history.

Owns the look-up of versions, and every move of the alias. Never decides which version is champion.
Writes no model, and needs no torch, so that serving and tagging run without it.

MLflow's registry has no locks. Each move therefore first sets a tag of its own on the registered
model that announces it, then checks that no other move is announced and that the alias has not
changed, and only then moves the alias. Of two simultaneous moves at most one succeeds, and no
record is overwritten.
"""

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from nuswide.tagger import Tagger

CHAMPION = "champion"
ADDRESS = "models:/"  # begins the address of a version
_NOT_IN_NAMES = '/:@?#"'
_MOST_CHARS = 255  # of a name, in MLflow's tables
_HISTORY = "champion."  # begins the tag of a move, champion.NUMBER.TOKEN
_CONTEST_LINE = "Champion: "  # begins the line that describe_contest writes
_ABANDONED_S = 300.0  # after this time, an announced move was cut off


@dataclass(frozen=True)
class Move:
    """One move of the alias to a version, from the one before (None if there was none).

    why: the reason in words. undoes: how many champions it went back; 0 for a promotion.
    """

    number: int
    version: str
    before: str | None
    why: str
    undoes: int


class ChampionMoved(click.ClickException):
    """Another move of the alias was made meanwhile, or is announced."""


def check_name(name: str) -> None:
    """Raise click.UsageError unless a model can be registered and found by a name.

    MLflow refuses some characters, and others have a meaning in addresses or end texts in filters.
    """
    is_plain = name.isprintable() and name == name.strip() and not set(name) & set(_NOT_IN_NAMES)
    if not is_plain or not name or name == "." or name.startswith("..") or len(name) > _MOST_CHARS:
        similar = re.sub(r"[^\w.-]+", "-", name)[:_MOST_CHARS].strip("-.") or "nuswide-tagger"
        raise click.UsageError(
            f"registered_model={name!r} cannot be the name of a model, which has no "
            f"{' '.join(_NOT_IN_NAMES)} and at most {_MOST_CHARS} characters; give e.g. {similar}"
        )


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def describe_contest(version: ModelVersion, outcome: str, *, is_champion: bool) -> None:
    """Write a contest's outcome into the version's description, and a champion's into the model's.

    It replaces the line of an earlier contest; other lines stay.
    """
    client = mlflow.MlflowClient()
    name, number = version.name, str(version.version)
    description = client.get_model_version(name, number).description
    client.update_model_version(name, number, description=_with_line(description, outcome))
    if is_champion:
        description = client.get_registered_model(name).description
        client.update_registered_model(name, description=_with_line(description, outcome))


def _with_line(description: str | None, outcome: str) -> str:
    lines = (description or "").splitlines()
    kept = [line for line in lines if not line.startswith(_CONTEST_LINE)]
    return "\n".join([*kept, f"{_CONTEST_LINE}{outcome}."]).strip()


def champion_of(name: str) -> ModelVersion | None:
    """Return the champion among a model's versions; None if there is none.

    Raises click.ClickException if there is no such model.
    """
    client = mlflow.MlflowClient()
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        raise click.ClickException(
            f"there is no model {name!r}; registered models: {_model_names(client)}"
        ) from None
    return _alias(model)


def _model_names(client: mlflow.MlflowClient) -> str:
    return ", ".join(model.name for model in client.search_registered_models()) or "none"


def _alias(model: RegisteredModel) -> ModelVersion | None:
    # Not by get_model_version_by_alias, whose error for a missing alias is like any other.
    if CHAMPION not in model.aliases:
        return None
    version = str(model.aliases[CHAMPION])
    try:
        return mlflow.MlflowClient().get_model_version(model.name, version)
    except MlflowException as error:
        raise click.ClickException(
            f"{model.name}@{CHAMPION} is on version {version}, which cannot be read "
            f"({str(error).splitlines()[0]})"
        ) from error


def history_of(name: str) -> list[Move]:
    """Return all recorded moves of the alias, the earliest first."""
    model = mlflow.MlflowClient().get_registered_model(name)
    at = str(model.aliases.get(CHAMPION))
    moves = [m for _, m, is_done, _ in _moves(model) if is_done or m.version == at]
    return sorted(moves, key=lambda move: move.number)


def _moves(model: RegisteredModel) -> list[tuple[str, Move, bool, float]]:
    """Return (key of the tag, move, whether it is done, when it began) of each move."""
    found = []
    for key, value in model.tags.items():
        if key.startswith(_HISTORY):
            about = json.loads(value)
            fields = {name: about[name] for name in ("version", "before", "why", "undoes")}
            move = Move(number=int(key.split(".")[1]), **fields)
            found.append((key, move, about["done"], about["at"]))
    return found


def move_champion(name: str, version: str, *, before: str | None, why: str, undoes: int) -> None:
    """Move the alias from one version (None if there was none) to another, and record it.

    Raises ChampionMoved if the alias has moved meanwhile, or another move is announced.
    """
    client = mlflow.MlflowClient()
    number = max((m.number for m in history_of(name)), default=0) + 1
    key = f"{_HISTORY}{number:04d}.{secrets.token_hex(4)}"
    about: dict[str, object] = {"version": version, "before": before, "undoes": undoes}
    about |= {"why": why[:4000], "at": time.time(), "done": False}
    client.set_registered_model_tag(name, key, json.dumps(about))
    try:
        _require_only_move(client, name, key, before)
    except BaseException:
        client.delete_registered_model_tag(name, key)
        raise
    # If the process dies from here on, the tag stays, and counts if the alias was moved.
    client.set_registered_model_alias(name, CHAMPION, version)
    client.set_registered_model_tag(name, key, json.dumps(about | {"done": True}))


def _require_only_move(
    client: mlflow.MlflowClient, name: str, key: str, before: str | None
) -> None:
    # The tags first: a move that is done by now has moved the alias.
    moves = _moves(client.get_registered_model(name))
    model = client.get_registered_model(name)
    at = model.aliases.get(CHAMPION)
    for other, move, is_done, began in moves:
        if is_done or other == key:
            continue
        if time.time() - began < _ABANDONED_S:
            raise ChampionMoved(f"version {move.version} of {name} is being promoted; try again")
        if move.version == str(at):
            about = json.loads(model.tags[other]) | {"done": True}
            client.set_registered_model_tag(name, other, json.dumps(about))
        else:  # it was cut off before it moved the alias
            client.delete_registered_model_tag(name, other)
    if (None if at is None else str(at)) != before:
        raise ChampionMoved(f"{name}@{CHAMPION} was moved to version {at} meanwhile; try again")


def champions_before(name: str) -> list[str]:
    """Return the versions to roll back to, the latest first."""
    stack: list[str] = []
    for move in history_of(name):
        if move.undoes:
            stack = _back_to(stack, move.version)
        else:
            if move.before and stack[-1:] != [
                move.before
            ]:  # the alias was moved by another program
                stack.append(move.before)
            stack.append(move.version)
    champion = champion_of(name)
    at = str(champion.version) if champion else None
    if at in stack:
        stack = _back_to(stack, at)[:-1]
    return stack[::-1]


def _back_to(stack: list[str], version: str) -> list[str]:
    while stack and stack[-1] != version:
        stack = stack[:-1]
    return stack


def find_version(uri: str) -> ModelVersion:
    """Look up models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises click.ClickException if there is none, naming the models there are.
    """
    client = mlflow.MlflowClient()
    name, at, alias = uri.removeprefix(ADDRESS).partition("@")
    name, _, number = name.partition("/")
    if not uri.startswith(ADDRESS) or not name or not (alias if at else number):
        raise click.ClickException(
            f"{uri!r} is no address of a model; give models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        if number == "latest":
            latest = client.get_registered_model(name).latest_versions  # one for each stage
            number = str(max(int(version.version) for version in latest))
        return client.get_model_version(name, number)
    except (MlflowException, ValueError):
        raise click.ClickException(
            f"there is no model {uri}; registered models: {_model_names(client)}. `nuswide train` "
            "makes one"
        ) from None


def address_of(version: ModelVersion) -> str:
    """Return a version's address by its number, which does not move as an alias does."""
    return f"{ADDRESS}{version.name}/{version.version}"


def fetch_bundle(version: ModelVersion) -> Path:
    """Download a registered version; return the folder of its bundle."""
    local = mlflow.artifacts.download_artifacts(address_of(version))
    return Path(local) / "artifacts" / "bundle"


def load_tagger(version: ModelVersion) -> Tagger:
    """Download a version's bundle and load it, without running code of the model."""
    return Tagger.load(fetch_bundle(version))


def model_id_of(version: ModelVersion) -> str | None:
    """Return the ID of a version's logged model; a version found by its alias lacks the field."""
    return version.model_id or (version.source or "").rpartition("/")[2] or None
