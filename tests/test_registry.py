import subprocess
import sys
from collections.abc import Iterator

import click
import mlflow
import pytest

from nuswide.registry import describe_version, find_version


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("tracking")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(None)


def new_version(name: str, **tags: str) -> tuple[str, bool]:
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, "runs:/x/model").version
    renamed = {key.replace("__", "/"): value for key, value in tags.items()}
    return str(version), describe_version(name, str(version), renamed)


def test_the_champion_is_the_first_then_whoever_is_better_on_the_same_val() -> None:
    def champion() -> str:
        return str(find_version("models:/t@champion").version)

    assert new_version("t", val__map="0.5", val_digest="d")[1]
    assert not new_version("t", val__map="0.4", val_digest="d")[1]
    assert not new_version("t", val__map="0.9", val_digest="other")[1]
    assert not new_version("t", test__map="0.9")[1]  # a run without a val split
    assert not new_version("t", val__map="0.5", val_digest="d")[1]
    assert champion() == "1"
    winner, won = new_version("t", val__map="0.6", val_digest="d")
    assert won and champion() == winner == "6"


def test_versions_are_found_by_alias_number_and_latest() -> None:
    new_version("u", val__map="0.5", val_digest="d")
    last, _ = new_version("u", val__map="0.4", val_digest="d")
    assert str(find_version("models:/u@champion").version) == "1"
    assert str(find_version("models:/u/1").version) == "1"
    assert str(find_version("models:/u/latest").version) == last
    for wrong in ("u", "models:/u", "models:/u/9", "models:/u@best", "models:/", "runs:/a/model"):
        with pytest.raises(click.ClickException):
            find_version(wrong)


def test_the_registry_and_the_server_need_no_torch() -> None:
    modules = "nuswide.registry, nuswide.serve.gate, nuswide.serve.model, nuswide.serve.server"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
