"""What several test files share: a tiny data set, and one whole run through `mlflow run` on it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nuswide.data.sample import draw_sample

if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes share the cores; threads of each would spend their time waiting for the rest.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["chromium", "serving"]  # the fixtures `browser` and `server`
ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("NUSWIDE_REAL_DATA") or "no-real-data")
TINY = {
    "backbone": "resnet18",
    "image_size_px": "32",
    "epochs": "2",
    "batch_size": "8",
    "lr": "1e-3",
}


def needs_real(*names: str) -> pytest.MarkDecorator:
    """Skip a test where these folders of real data are not in REAL."""
    words = " and ".join(f"{name}/" for name in names)
    return pytest.mark.skipif(
        not all((REAL / name).is_dir() for name in names),
        reason=f"needs NUSWIDE_REAL_DATA, a folder with {words}",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count tests of a browser, Spark or PostgreSQL as slow, so that `-m "not slow"` is enough."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("browser", "spark", "postgres")):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Workspace:
    """A folder with its own tracking database, and the commands that use it."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        # Dozens of processes import torch and mlflow: without cached bytecode, each for 15 s.
        left_out = ("MLFLOW_", "NUSWIDE_", "PYTHONDONTWRITEBYTECODE")
        own = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        tracking = f"sqlite:///{self.folder / 'mlflow.db'}"
        return own | {"PATH": binaries, "MLFLOW_TRACKING_URI": tracking, "PYTHONPATH": str(ROOT)}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; its output is in the exception if it fails."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600
        )
        if check and done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def nuswide(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "nuswide", *arguments, check=check)

    @contextmanager
    def tracked(self, experiment: str | None = None) -> Iterator["Workspace"]:
        """Have this process use the workspace's store as well, and a new experiment in it."""
        import mlflow

        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.env["MLFLOW_TRACKING_URI"])
        if experiment:
            mlflow.create_experiment(experiment, (self.folder / "artifacts").as_uri())
            mlflow.set_experiment(experiment)
        try:
            yield self
        finally:
            if experiment:
                mlflow.set_experiment("Default")  # which the next store has, too
            mlflow.set_tracking_uri(before)

    def in_process(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `nuswide` in this process, which saves the import of torch and mlflow."""
        from click.testing import CliRunner

        from nuswide.cli import main

        with self.tracked(), pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            result = CliRunner().invoke(main, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        if check and result.exit_code:
            raise AssertionError(f"{arguments} failed:\n{result.stdout}\n{result.stderr}")
        return subprocess.CompletedProcess(
            arguments, result.exit_code, result.stdout, result.stderr
        )

    def mlflow(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "mlflow", *arguments, check=check)

    def mlflow_run(
        self, entry_point: str, check: bool = True, **params: str
    ) -> subprocess.CompletedProcess[str]:
        given = [x for k, v in params.items() for x in ("-P", f"{k}={v}")]
        return self.mlflow(
            "run", str(ROOT), "-e", entry_point, "--env-manager", "local", *given, check=check
        )


def run_id_of(done: subprocess.CompletedProcess[str]) -> str:
    """The id of the run that a command says it made."""
    found = re.findall(r"^run ([0-9a-f]{32})\b", done.stdout, flags=re.MULTILINE)
    assert found, done.stdout + done.stderr
    return found[-1]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn scenes in the article's format."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    draw_sample(folder, images=48, size_px=48, seed=1)
    return folder


@dataclass(frozen=True)
class Registered:
    """A model that was never trained, as `models:/small@champion` in a registry of its own.

    folder: the downloaded model. bundle: what it was made of.
    """

    workspace: Workspace
    uri: str
    folder: Path
    bundle: Path


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """A small network with random weights, exported, logged and registered as ever."""
    return register_untrained(tmp_path_factory.mktemp("registered"))


def register_untrained(folder: Path, **fields: Any) -> Registered:
    """Register a small network with random weights and some fields of the configuration."""
    import mlflow
    import numpy as np

    from nuswide.config import Config
    from nuswide.deployment.export import log_bundle, write_bundle
    from nuswide.evaluation.evaluate import Decision
    from nuswide.evaluation.promote import try_for_champion
    from nuswide.models.networks import create_model
    from nuswide.models.preprocessing import preprocessing_of, resolve_preprocessing

    with Workspace(folder).tracked("small") as workspace:
        config = Config(backbone="resnet18", image_size_px=32, **fields)
        config, _ = resolve_preprocessing(config)
        model = create_model(config, n_labels=5)
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
        bundle, labels = workspace.folder / "bundle", ["sky", "sea", "a cat", "plants & trees", "é"]
        decision = Decision(np.array([0.4, 0.45, 0.5, 0.55, 0.6], dtype=np.float32))
        settings = {"labels": labels, **preprocessing_of(config).as_settings(), "config": {}}
        write_bundle(bundle, model, settings, decision, images)
        with mlflow.start_run() as run:
            logged = log_bundle(bundle, images[0], "small", run.info.run_id, "A card.")
        try_for_champion("small", str(logged.version))
        downloaded = mlflow.artifacts.download_artifacts("models:/small@champion")
    return Registered(workspace, f"models:/small/{logged.version}", Path(downloaded), bundle)


@dataclass(frozen=True)
class Trained:
    """What `mlflow run . -P lr=1e-3 ...` left behind."""

    workspace: Workspace
    run_id: str
    data: Path
    cache: str
    output: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Trained:
    """One run of the main entry point through `mlflow run`, made once for all tests."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    cache = str(workspace.folder / "cache")
    done = workspace.mlflow_run("main", data=str(tiny_data), cache=cache, **TINY)
    return Trained(workspace, run_id_of(done), tiny_data, cache, done.stdout + done.stderr)
