"""Every shipped experiment file loads and says what it is."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from nuswide.config import Config, load_config
from nuswide.models.heads import HEADS
from nuswide.models.losses import LOSSES

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = [
    path for path in sorted((ROOT / "experiments").rglob("*.yaml")) if path.parent.name != "sweeps"
]
# What each file gave when it still repeated the strong recipe, as differences from the defaults.
STRONG: dict[str, Any] = {
    "weights": "imagenet", "epochs": 30, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05,
    "schedule": "one_cycle", "ema_epochs": 1.0, "rotate_deg": 10.0, "translate": 0.1,
    "scale_min": 0.8, "scale_max": 1.25, "thresholds": "label",
}  # fmt: skip
ON_STRONG: dict[str, dict[str, Any]] = {
    "strong": {}, "few_gpus": {"lr": 0.002, "sync_batchnorm": True},
    "combination": {"loss": "two_way", "head": "gcn"},
    **{f"losses/{name}": {"loss": name} for name in (
        "asl", "class_balanced", "distribution_balanced", "focal", "hill", "splc", "two_way",
        "weighted_bce", "zlpr")},
    **{f"heads/{name}": {"head": name} for name in ("csra", "gcn", "max_pool", "ml_decoder")},
    **{f"images/{name}": {"sampling": name} for name in ("class_aware", "repeat_factor")},
    **{f"images/{name}": {"auto_augment": name} for name in ("randaugment", "trivialaugment")},
    "images/growing_sizes": {"start_size_px": 128}, "images/test_flips": {"test_flips": True},
}  # fmt: skip
PROBE: dict[str, Any] = {
    "weights": "imagenet", "freeze": "backbone", "optimizer": "adamw", "lr": 3e-3,
    "weight_decay": 0.05, "schedule": "one_cycle", "thresholds": "label", "epochs": 20,
    "hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0,
}  # fmt: skip
ON_PROBE: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in ("asl", "two_way", "zlpr")},
    **{name: {"head": name} for name in ("csra", "max_pool")},
    "combination": {"loss": "two_way", "head": "csra"},
    "native_size": {"loss": "two_way", "head": "csra", "image_size_px": 0},
    "imagenet_preprocessing": {
        "mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "interpolation": "bilinear",
    },
}  # fmt: skip
DIFFERENCES: dict[str, dict[str, Any]] = {
    "sample": {"image_size_px": 64, "epochs": 10, "batch_size": 8, "rotate_deg": 5.0,
               "translate": 0.05, "scale_min": 0.9, "scale_max": 1.1},
    "article": {"val_fraction": 0.0, "weights": "imagenet", "seed": 2020, "thresholds": "fixed",
                "select_on": "test", "test_freq": 200},
    "article_val": {"weights": "imagenet", "thresholds": "fixed"},
    "probe": PROBE,
    **{f"probe/{name}": PROBE | own for name, own in ON_PROBE.items()},
    "foundation": STRONG | {
        "backbone": "timm/vit_small_patch14_dinov2.lvd142m", "image_size_px": 224, "epochs": 10,
        "lr": 5e-4, "warmup_epochs": 1.0, "schedule": "cosine", "layer_decay": 0.7,
        "drop_path": 0.1, "clip_norm": 1.0,
    },
    **{name: STRONG | own for name, own in ON_STRONG.items()},
}  # fmt: skip


def test_each_shipped_experiment_is_its_recorded_difference_from_the_defaults() -> None:
    folder = ROOT / "experiments"
    loaded = {
        str(path.relative_to(folder).with_suffix("")): load_config(path, {}) for path in EXPERIMENTS
    }
    assert loaded == {name: Config(**own) for name, own in DIFFERENCES.items()}


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
