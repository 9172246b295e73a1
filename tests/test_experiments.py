"""Every shipped experiment file loads and says what it is."""

from pathlib import Path

import pytest

from nuswide.config import load_config

EXPERIMENTS = sorted((Path(__file__).resolve().parent.parent / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_a_shipped_experiment_loads_and_gives_its_command(path: Path) -> None:
    load_config(path, {})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"experiments/{path.name}" in text or path.stem == "sample"


def test_the_default_experiment_uses_the_sample() -> None:
    path = next(p for p in EXPERIMENTS if p.stem == "sample")
    assert load_config(path, {}).data == "sample"


def test_the_article_experiment_is_the_articles_recipe() -> None:
    config = load_config(next(p for p in EXPERIMENTS if p.stem == "article"), {"data": "x"})
    recipe = {
        "backbone": "resnext50_32x4d", "weights": "imagenet", "head": "linear", "dropout": 0.2,
        "loss": "bce", "image_size_px": 256, "epochs": 35, "batch_size": 32, "lr": 1e-4,
        "hflip": 0.5, "rotate_deg": 20, "translate": 0.2, "scale_min": 0.5, "scale_max": 1.5,
        "threshold": 0.5, "thresholds": "fixed", "val_fraction": 0, "select_on": "test",
        "test_freq": 200, "seed": 2020,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in recipe} == recipe
