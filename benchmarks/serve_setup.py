"""What benchmarks of bundle and server share: random models, photos, and the server itself."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hostile  # noqa: E402 - of the tests, which are no package
import serving  # noqa: E402

if TYPE_CHECKING:
    from nuswide.models.networks import TaggerNet

__all__ = ["environment", "hostile", "photo", "register_model", "serving", "write_random_bundle"]


def environment(folder: Path) -> dict[str, str]:
    """The environment of a server whose registry is in a folder."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "NUSWIDE_"))}
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    return own | {"MLFLOW_TRACKING_URI": tracking, "PYTHONPATH": str(ROOT)}


def write_random_bundle(
    folder: Path, backbone: str, size_px: int, *, n_labels: int = 27
) -> tuple["TaggerNet", Path]:
    """Export a network of random weights; it, and the folder of its bundle."""
    from nuswide.config import Config
    from nuswide.deployment.export import write_bundle
    from nuswide.evaluation.evaluate import Decision
    from nuswide.models.networks import create_model

    model = create_model(Config(backbone=backbone, image_size_px=size_px), n_labels=n_labels)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, size_px, size_px), dtype=np.uint8)
    labels = [f"label {i}" for i in range(n_labels)]
    settings = {"labels": labels, "image_size_px": size_px, "config": {}}
    decision = Decision(np.full(len(labels), 0.5, dtype=np.float32))
    write_bundle(folder / "bundle", model, settings, decision, images)
    return model, folder / "bundle"


def register_model(folder: Path, backbone: str, size_px: int) -> Path:
    """Register a network of random weights as `models:/small@champion`; its bundle's folder."""
    import mlflow

    from nuswide.deployment.export import log_bundle
    from nuswide.evaluation.promote import try_for_champion

    mlflow.set_tracking_uri(environment(folder)["MLFLOW_TRACKING_URI"])
    _, bundle = write_random_bundle(folder, backbone, size_px)
    example = np.zeros((3, size_px, size_px), dtype=np.uint8)
    experiment = mlflow.create_experiment("small", str(folder / "artifacts"))
    with mlflow.start_run(experiment_id=experiment) as run:
        logged = log_bundle(bundle, example, "small", run.info.run_id, "A random network.")
    try_for_champion("small", str(logged.version))
    return bundle


def photo(width: int = 500, height: int = 375, seed: int = 0) -> bytes:
    """A JPEG of clouds of colour, of a photo's size in pixels and about its size in bytes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()
