"""Every shipped experiment file loads and says what it is."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from nuswide.config import load_config
from nuswide.models.heads import HEADS
from nuswide.models.losses import LOSSES

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = [
    path for path in sorted((ROOT / "experiments").rglob("*.yaml")) if path.parent.name != "sweeps"
]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_a_shipped_experiment_loads_and_gives_its_command(path: Path) -> None:
    load_config(path, {})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert str(path.relative_to(ROOT)) in text or path.stem == "sample"


@pytest.mark.parametrize(("kind", "names", "plain"), [("loss", LOSSES, "bce"),
                                                      ("head", HEADS, "linear")])  # fmt: skip
def test_each_loss_and_head_has_a_file_that_differs_from_the_strong_recipe_in_it_alone(
    kind: str, names: dict[str, object], plain: str
) -> None:
    folder = ROOT / "experiments" / {"loss": "losses", "head": "heads"}[kind]
    strong = load_config(ROOT / "experiments" / "strong.yaml", {})
    assert getattr(strong, kind) == plain
    for name in set(names) - {plain}:
        assert load_config(folder / f"{name}.yaml", {}) == replace(strong, **{kind: name})


def test_each_way_with_images_has_a_file_that_differs_from_the_strong_recipe_in_it_alone() -> None:
    fields_of = {
        "class_aware": {"sampling": "class_aware"}, "repeat_factor": {"sampling": "repeat_factor"},
        "randaugment": {"auto_augment": "randaugment"},
        "trivialaugment": {"auto_augment": "trivialaugment"},
        "growing_sizes": {"start_size_px": 128}, "test_flips": {"test_flips": True},
    }  # fmt: skip
    strong = load_config(ROOT / "experiments" / "strong.yaml", {})
    files = {path.stem: path for path in EXPERIMENTS if path.parent.name == "images"}
    assert set(files) == set(fields_of)
    for name, path in files.items():
        assert load_config(path, {}) == replace(strong, **fields_of[name])


def test_the_honest_article_recipe_differs_from_the_articles_in_its_choice_alone() -> None:
    article, honest = (load_config(ROOT / "experiments" / f"{name}.yaml", {})
                       for name in ("article", "article_val"))  # fmt: skip
    differing = {f.name for f in fields(article)
                 if getattr(article, f.name) != getattr(honest, f.name)}  # fmt: skip
    assert differing == {"val_fraction", "select_on", "test_freq", "seed"}


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
