"""The model registry: versions, their tags and the alias champion.

Owns the look-up of versions and who is champion. Writes no model, and needs no torch, so that what
serves and tags can run without it.

    tagger = load_tagger(find_version("models:/nuswide-tagger@champion"))
"""

from collections.abc import Mapping
from pathlib import Path

import click
import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from nuswide.tagger import Tagger

CHAMPION = "champion"


def describe_version(name: str, version: str, tags: Mapping[str, str]) -> bool:
    """Tag a version with its figures and make it champion if it earns that; True if it did.

    The first version does, and any later one whose `val/map` is higher than the champion's on the
    same val samples (`val_digest`).
    """
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:  # there is none yet
        wins = True
    else:
        wins = _beats(tags, champion.tags)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, version)
    return wins


def _beats(challenger: Mapping[str, str], champion: Mapping[str, str]) -> bool:
    comparable = "val_digest" in champion and challenger.get("val_digest") == champion["val_digest"]
    return comparable and float(challenger["val/map"]) > float(champion["val/map"])


def find_version(uri: str) -> ModelVersion:
    """Look up models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises click.ClickException if there is none, naming the models there are.
    """
    client = mlflow.MlflowClient()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not uri.startswith("models:/") or not name or not (alias if at else number):
        raise click.ClickException(
            f"model={uri!r} is no model address; give models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        if number == "latest":
            return max(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))
        return client.get_model_version(name, number)
    except (MlflowException, ValueError):
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise click.ClickException(
            f"there is no model {uri}; registered models: {known}. `mlflow run .` makes one"
        ) from None


def load_tagger(version: ModelVersion) -> Tagger:
    """Download a registered version's bundle and open it; none of the model's code is run."""
    local = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
    return Tagger.load(Path(local) / "artifacts" / "bundle")


def model_id_of(version: ModelVersion) -> str | None:
    """The id of the logged model behind a version; a version reached by alias lacks it."""
    return version.model_id or (version.source or "").rpartition("/")[2] or None
