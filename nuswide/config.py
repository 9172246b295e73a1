"""The configuration of one experiment: a frozen dataclass of flat fields.

Owns the fields with their defaults, ranges, help and roles, and the messages about mistakes. Never
imports torch or mlflow, so that `--help` is fast.

    >>> load_config(None, {"lr": "1e-3"}).lr
    0.001
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click

from nuswide.experiment_file import build_on, read_yaml
from nuswide.values import check_goal, check_range, check_start_size, convert, read_channels

T = TypeVar("T")
IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"


Role = Literal["recipe", "split", "seed", "hardware", "data", "record"]
Relation = Literal["resume", "compare", "sweep", "reproduce"]

# Between which runs the fields of a role may differ. recipe: sets the weights and the metrics.
# split: selects the images of each split, or the split that selects the weights. hardware: changes
# no more than rounding. data: where the images are; the digest of the data tells other images.
_MAY_DIFFER: Mapping[Relation, tuple[Role, ...]] = {
    "resume": ("hardware", "data", "record"),  # an interrupted run and its continuation
    "compare": ("seed", "hardware", "data", "record"),  # runs pooled as seeds of one recipe
    "sweep": ("recipe", "seed", "hardware"),  # trials of one study
    "reproduce": ("data", "record"),  # a recorded run and its repetition
}


def _field(
    default: Any,
    help: str,
    *,
    role: Role = "recipe",
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
) -> Any:
    """Declare a config field; `low` and `high` are inclusive unless `open_low`."""
    metadata = {"help": help, "role": role, "low": low, "high": high, "open_low": open_low}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every choice that defines an experiment; raises ValueError when a field is out of range."""

    # Data
    data: str = _field(
        "sample", "Prepared folder, folder of annotations and images, or `sample`.", role="data"
    )
    val_fraction: float = _field(
        0.15, "Fraction of the training split held out as val; 0 for none.", role="split",
        low=0, high=0.5,
    )  # fmt: skip
    folds: int = _field(
        0, "Parts of train and val, of which `fold` is val; 0 for val_fraction.", role="split",
        low=0,
    )  # fmt: skip
    fold: int = _field(0, "The part of `folds` that is val, from 0.", role="split", low=0)
    test_fraction: float = _field(
        0.0, "Fraction of the images held out as test if the data has no test split; 0 for none.",
        role="split", low=0, high=0.5,
    )  # fmt: skip
    split_seed: int = _field(
        0, "Seed that selects the val and test images, independent of `seed`.", role="split", low=0
    )
    cache: str = _field("data/cache", "Folder of the cache of decoded images.", role="data")
    cache_features: bool = _field(
        True,
        "With freeze=backbone and images that do not change, run the backbone once and cache its "
        "feature maps.",
        role="hardware",
    )
    skip_rejected: bool = _field(
        False, "Leave out images that cannot be decoded, and count them.", role="data"
    )
    image_size_px: int = _field(
        256, "Side of the square images, in pixels; 0: that of the backbone's pretrained weights.",
        low=0, high=1024,
    )  # fmt: skip
    fit: Literal["squash", "crop", "pad"] = _field(
        "squash",
        "How an image becomes a square: squash, regardless of its aspect ratio; crop, its centre; "
        "pad, with bars of the mean color.",
    )
    interpolation: Literal["auto", "bilinear", "bicubic"] = _field(
        "auto", "Interpolation of the resizing; auto: that of the pretrained weights."
    )
    mean: str = _field(
        "auto",
        "Mean of red, green and blue in [0, 1], as in 0.5,0.5,0.5, which normalization subtracts; "
        "auto: that of the pretrained weights.",
    )
    std: str = _field("auto", "Standard deviation that normalization divides by, as in mean.")
    start_size_px: int = _field(
        0, "Side in the first epoch, a multiple of 32; 0: image_size_px.", low=0, high=1024
    )
    growing_share: float = _field(
        0.75, "Fraction of the epochs in which start_size_px grows to image_size_px.", low=0, high=1
    )
    sampling: Literal["uniform", "class_aware", "repeat_factor"] = _field(
        "uniform",
        "Images of an epoch: uniform, each once; class_aware, each label equally often; "
        "repeat_factor, images of rare labels repeated.",
    )
    repeat_threshold: float = _field(
        0.1, "repeat_factor: frequency in train below which a label is rare.", low=0, high=1
    )

    # Model
    backbone: str = _field(
        "resnext50_32x4d",
        "resnet18, resnet50, resnet101, resnext50_32x4d, resnext101_32x8d, convnext_tiny, "
        "efficientnet_v2_s, mobilenet_v3_large, mobilenet_v3_small, swin_t, or timm/NAME[.TAG].",
    )
    head: str = _field("linear", "linear, max_pool, csra, gcn or ml_decoder.")
    dropout: float = _field(0.2, "Dropout before the last layer.", low=0, high=0.95)
    weights: str = _field(
        "none",
        "Initial weights: none, imagenet (torchvision's IMAGENET1K_V1 or timm's), imagenet_v2 "
        "(torchvision's), models:/NAME@ALIAS or /VERSION, or a .safetensors or .pth file.",
    )
    drop_path: float = _field(-1.0, "Stochastic depth; -1: the backbone's own.", low=-1, high=0.9)
    csra_heads: int = _field(1, "csra: attention heads, one temperature each.", low=1, high=8)
    csra_lambda: float = _field(0.1, "Weight of the attention term in csra's logits.", low=0)
    gcn_vectors: str = _field(
        "pmi", "Label vectors of gcn: onehot, learned, pmi (of train), or a file of word vectors."
    )
    gcn_threshold: float = _field(
        0.4, "gcn links two labels whose conditional probability is at least this.", low=0, high=1
    )

    # Optimization
    loss: str = _field(
        "bce",
        "bce, weighted_bce, focal, asl, class_balanced, distribution_balanced, two_way, zlpr, hill "
        "or splc.",
    )
    label_smoothing: float = _field(0.0, "Weight of 0.5 in the smoothed targets.", low=0, high=0.9)
    weighted_bce_cap: float = _field(20.0, "weighted_bce: maximum weight of a positive.", low=1)
    focal_gamma: float = _field(2.0, "focal: exponent that reduces easy entries.", low=0, high=10)
    asl_gamma_neg: float = _field(4.0, "asl: exponent that reduces easy negatives.", low=0, high=10)
    asl_gamma_pos: float = _field(1.0, "asl: exponent that reduces easy positives.", low=0, high=10)
    asl_clip: float = _field(0.05, "asl: score below which negatives are ignored.", low=0, high=0.5)
    class_balanced_beta: float = _field(
        0.999, "0 for equal weights; near 1 for weights by inverse frequency.", low=0, high=0.999999
    )
    distribution_balanced_mu: float = _field(0.2, "Rarity at the sigmoid's centre.", low=0, high=1)
    distribution_balanced_lambda: float = _field(2.0, "Scale of negatives.", low=0, open_low=True)
    two_way_t_pos: float = _field(4.0, "two_way: temperature of positives.", low=0, open_low=True)
    two_way_t_neg: float = _field(1.0, "two_way: temperature of negatives.", low=0, open_low=True)
    hill_lambda: float = _field(1.5, "hill: lambda of the loss of negatives.", low=1)
    splc_threshold: float = _field(0.6, "splc: score of a presumed positive.", low=0, high=1)
    splc_from_epoch: int = _field(1, "splc: first epoch of the correction, from 0.", low=0)
    epochs: int = _field(35, "Passes over the training split.", low=1)
    patience_epochs: int = _field(
        0, "Stop after this many epochs without a better mAP on val; 0: never.", low=0
    )
    batch_size: int = _field(32, "Images per batch and process.", low=2)
    accumulate: int = _field(1, "Batches whose gradients are accumulated into one step.", low=1)
    optimizer: str = _field("adam", "adam, adamw or sgd.")
    lr: float = _field(1e-4, "Learning rate.", low=0, open_low=True)
    momentum: float = _field(0.9, "Momentum of sgd.", low=0, high=0.999)
    weight_decay: float = _field(0.0, "Weight decay; biases and norms are exempt.", low=0)
    schedule: str = _field("constant", "Learning rate schedule: constant, cosine or one_cycle.")
    warmup_epochs: float = _field(0.0, "Epochs of linear warm-up to lr.", low=0)
    head_epochs: int = _field(0, "First epochs, which train the head only.", low=0)
    freeze: Literal["none", "norms", "backbone"] = _field(
        "none",
        "What is not trained of the backbone: none; norms, its normalization layers and their "
        "statistics; backbone, all of it.",
    )
    backbone_lr_scale: float = _field(
        1.0, "Learning rate of the backbone, as a fraction of lr.", low=0, high=1, open_low=True
    )
    layer_decay: float = _field(
        1.0, "Factor of the learning rate from a layer of the backbone to the one before it.",
        low=0, high=1, open_low=True,
    )  # fmt: skip
    clip_norm: float = _field(0.0, "Maximum norm of the gradients; 0 for no clipping.", low=0)
    ema_epochs: float = _field(
        0.0, "Span of the weights' moving average in epochs; 0: none.", low=0
    )
    seed: int = _field(0, "Seed of all randomness.", role="seed", low=0, high=2**31 - 1)

    # Hardware; precision and sync_batchnorm change the metrics, and so belong to the recipe
    device: Literal["auto", "cpu", "cuda", "mps"] = _field(
        "auto", "auto uses a CUDA GPU if there is one; mps is an Apple GPU.", role="hardware"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", "Precision of the network; auto uses bf16 on GPUs that support it, else fp32."
    )
    compile: Literal["auto", "on", "off"] = _field(
        "auto", "torch.compile; auto uses it for long training on a GPU.", role="hardware"
    )
    cuda_graph: bool = _field(
        False,
        "Launch the network as one CUDA graph; needs one GPU, accumulate=1, images of one size "
        "and no compilation.",
        role="hardware",
    )
    grad_checkpointing: bool = _field(False, "Recompute activations: less memory.", role="hardware")
    sync_batchnorm: bool = _field(False, "Synchronize batch normalization; needs GPUs.")
    feed: Literal["auto", "resident", "blocks"] = _field(
        "auto",
        "Images on the device: resident, all of them; blocks, one block at a time; auto chooses "
        "by free memory.",
        role="hardware",
    )

    # Augmentation, drawn per image
    hflip: float = _field(0.5, "Probability of a horizontal flip.", low=0, high=1)
    rotate_deg: float = _field(20.0, "Maximum rotation either way, in degrees.", low=0, high=180)
    translate: float = _field(0.2, "Maximum shift, as a fraction of the side.", low=0, high=1)
    scale_min: float = _field(0.5, "Minimum zoom factor.", low=0, open_low=True)
    scale_max: float = _field(1.5, "Maximum zoom factor.", low=0, open_low=True)
    brightness: float = _field(0.0, "Brightness factor is drawn from 1 +- this.", low=0)
    contrast: float = _field(0.0, "Contrast factor is drawn from 1 +- this.", low=0)
    saturation: float = _field(0.0, "Saturation factor is drawn from 1 +- this.", low=0)
    hue: float = _field(0.0, "Hue shift is drawn from +- this fraction of a turn.", low=0, high=0.5)
    erase: float = _field(0.0, "Probability that a rectangle is erased.", low=0, high=1)
    mixup: float = _field(0.0, "Alpha of mixup, which blends two images; 0 for none.", low=0)
    cutmix: float = _field(0.0, "Alpha of CutMix, which pastes images; 0 for none.", low=0)
    auto_augment: Literal["none", "randaugment", "trivialaugment"] = _field(
        "none", "Operations drawn from 14, before the others: none, randaugment or trivialaugment."
    )
    randaugment_number: int = _field(2, "randaugment: operations per image.", low=1, high=8)
    randaugment_magnitude: int = _field(9, "randaugment: magnitude, of 30.", low=0, high=30)

    # Evaluation and selection
    threshold: float = _field(0.5, "Threshold of scores where none is fitted.", low=0, high=1)
    thresholds: Literal["auto", "fixed", "global", "label"] = _field(
        "auto",
        "Thresholds of the model: fixed; global, one fitted on val; label, one per label; auto: "
        "label if there is a val split, else fixed.",
    )
    threshold_goal: str = _field(
        "f1",
        "What fitted thresholds maximize on val: f1, f2 or another F-beta; or, with precision:0.9, "
        "recall at that precision.",
    )
    calibration: Literal["none", "platt", "temperature"] = _field(
        "none", "Calibration of scores, fitted on val per label: none, platt or temperature."
    )
    select_on: Literal["val", "test", "last"] = _field(
        "val",
        "Split whose mAP selects the best weights; test biases the test metrics, last keeps the "
        "final weights.",
        role="split",
    )
    test_flips: bool = _field(False, "Average the scores of an image and its mirror image.")
    test_freq: int = _field(0, "Steps between evaluations on test; 0 for one at the end.", low=0)

    # Record
    resume: str = _field(
        "none", "none; auto, the latest unfinished run of this configuration; or the ID of a run.",
        role="record",
    )  # fmt: skip
    checkpoints: str = _field("data/checkpoints", "Folder of checkpoints.", role="record")
    checkpoint_minutes: float = _field(
        10.0, "Minutes between checkpoints within an epoch.", role="record", low=0, open_low=True
    )
    upload_minutes: float = _field(
        10.0, "Minutes between uploads of the checkpoint.", role="record", low=0, open_low=True
    )
    registered_model: str = _field(
        "nuswide-tagger", "Name in the model registry; `none` to register no model.", role="record"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            check_range(f.name, getattr(self, f.name), f.metadata, get_args(f.type))
        if self.scale_min > self.scale_max:
            raise ValueError(
                f"scale_min={self.scale_min} is above scale_max={self.scale_max}; swap them"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}; "
                "lower it"
            )
        if self.select_on == "test" and self.test_freq == 0:
            raise ValueError(
                "select_on=test needs test_freq, the steps between tests; give e.g. 200"
            )
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise ValueError(
                f"fold={self.fold} of folds={self.folds} is none; give folds=2 or more, and a fold "
                "from 0 to folds - 1"
            )
        if 0 < self.image_size_px < 32:
            raise ValueError(f"image_size_px={self.image_size_px} must be 0 or at least 32")
        if -1 < self.drop_path < 0:
            raise ValueError(f"drop_path={self.drop_path} must be -1 or at least 0")
        check_goal(self.threshold_goal)
        _check_uses_of_val(self)
        check_start_size(self.start_size_px, self.image_size_px)
        for name in ("mean", "std"):
            if (value := getattr(self, name)) != "auto":
                read_channels(name, value)


def _check_uses_of_val(config: Config) -> None:
    has_val = config.val_fraction > 0 or config.folds > 0
    if config.select_on == "val" and not has_val:
        raise ValueError(
            "select_on=val needs a val split, but val_fraction is 0; "
            "give val_fraction=0.15, or select_on=last"
        )
    for name, without in (("thresholds", "fixed"), ("calibration", "none")):
        value = getattr(config, name)
        if not has_val and value not in ("auto", without):
            raise ValueError(
                f"{name}={value} is fitted on val, but val_fraction is 0; "
                f"give val_fraction=0.15, or {name}={without}"
            )
    is_fitted = has_val and config.thresholds != "fixed"
    if config.threshold_goal != "f1" and not is_fitted:
        raise ValueError(
            f"threshold_goal={config.threshold_goal} is what thresholds are fitted to, and none "
            "are; give val_fraction=0.15 and thresholds=label or global"
        )
    if config.patience_epochs and config.select_on != "val":
        raise ValueError(
            f"patience_epochs={config.patience_epochs} waits for a better mAP on val, but "
            f"select_on={config.select_on}; give select_on=val, or patience_epochs=0"
        )


def may_differ(relation: Relation) -> frozenset[str]:
    """Return the names of the fields in which two runs of a relation may differ."""
    return frozenset(f.name for f in fields(Config) if f.metadata["role"] in _MAY_DIFFER[relation])


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Complete recorded fields by the values of fields that were added since.

    These are the defaults, except for `split_seed`, which `seed` was before, and for the
    preprocessing, which was ImageNet's for every backbone.
    """
    before = {
        "split_seed": recorded.get("seed", Config.split_seed),
        "interpolation": "bilinear", "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
    }  # fmt: skip
    return {f.name: f.default for f in fields(Config)} | before | dict(recorded)


def known_fields(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of this version, as recorded or as with_defaults completes them."""
    completed = with_defaults(recorded)
    return {f.name: completed[f.name] for f in fields(Config)}


def load_config(
    experiment: Path | None, overrides: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Config:
    """Read an experiment file, let `overrides` take precedence, and check the result.

    defaults: in place of those of the fields, for what neither file nor `overrides` has. Raises
    click.UsageError naming the field, the value and what is allowed.
    """
    own = build_on(read_yaml(experiment), experiment) if experiment else {}
    values = {**(defaults or {}), **own, **overrides}
    known = {f.name: f for f in fields(Config)}
    for name in values:
        if name not in known:
            raise click.UsageError(unknown_name("field", name, known))
    try:
        return Config(**{n: convert(n, v, known[n].type) for n, v in values.items()})
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def lookup(registry: Mapping[str, T], name: str, value: str) -> T:
    """Look up a named choice, such as a loss; raises click.UsageError with the nearest name."""
    if value not in registry:
        raise click.UsageError(unknown_name(name, value, registry))
    return registry[value]


def unknown_name(kind: str, name: str, known: Mapping[str, Any]) -> str:
    """Return a message that `name` is unknown, with the nearest known name, or up to 40 of them."""
    near = difflib.get_close_matches(str(name), known, n=1)
    rest = f" ... ({len(known)} in all)" if len(known) > 40 else ""
    listed = ", ".join(list(known)[:40]) + rest
    hint = f"did you mean {near[0]}?" if near else f"known: {listed}"
    return f"unknown {kind} {name!r}; {hint}"
