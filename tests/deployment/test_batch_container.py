"""The container that `mlflow models generate-dockerfile` describes for a logged model."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import Registered

from nuswide.deployment import export

pytestmark = pytest.mark.slow


def test_the_image_gets_the_models_few_pinned_requirements_and_no_torch(
    registered: Registered, tmp_path: Path
) -> None:
    registered.workspace.mlflow(
        "models", "generate-dockerfile", "-m", registered.uri, "--env-manager", "local",
        "-d", str(tmp_path / "image"),
    )  # fmt: skip
    dockerfile = (tmp_path / "image" / "Dockerfile").read_text()
    assert "FROM python:3." in dockerfile and "-slim" in dockerfile
    assert f"pip install mlflow=={version('mlflow')}\n" in dockerfile
    assert "COPY model_dir /opt/ml/model" in dockerfile
    model = tmp_path / "image" / "model_dir"
    pins = (model / "requirements.txt").read_text().split()
    assert sorted(pins) == sorted(f"{name}=={version(name)}" for name in export._REQUIREMENTS)
    for file in (tmp_path / "image").rglob("*"):
        if file.suffix in (".txt", ".yaml", ".toml", ".lock", ""):
            assert file.is_dir() or "torch" not in file.read_text(), file
        assert file.suffix not in (".pkl", ".pickle", ".pt", ".pth"), file
    assert {"tagger.py", "artifacts", "MLmodel"} <= {path.name for path in model.iterdir()}


def test_a_lock_file_in_the_working_directory_is_not_the_models(
    registered: Registered, tmp_path: Path
) -> None:
    """MLflow would restore the environment from it and so install the packages for training."""
    for name in ("pyproject.toml", "uv.lock"):
        (tmp_path / name).write_text('version = 1\n[project]\nname = "x"\nversion = "0"\n')
    code = (
        "import mlflow, numpy as np; from pathlib import Path\n"
        "from nuswide.deployment.export import log_bundle\n"
        "with mlflow.start_run() as run:\n"
        f"    log_bundle(Path({str(registered.bundle)!r}), np.zeros((3, 32, 32), np.uint8), 'none',"
        " run.info.run_id, 'A card.')\n"
    )
    env = registered.workspace.env
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (model,) = (tmp_path / "mlruns").rglob("MLmodel")
    assert "uv.lock" not in os.listdir(model.parent), os.listdir(model.parent)
