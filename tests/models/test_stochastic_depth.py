"""Stochastic depth and gradient checkpointing: what a step changes with each, and what not."""

import copy
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from nuswide.config import Config, load_config
from nuswide.data.label_stats import TrainLabels
from nuswide.deployment.export import write_bundle
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.models.networks import TaggerNet, create_model
from nuswide.tagger import Tagger
from nuswide.training.step import State, create_state, prepare_epoch, train_step

N_LABELS = 3


def config_of(**fields: Any) -> Config:
    still = {"hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0}
    return Config(**{"backbone": "resnet18", "image_size_px": 64, **still, **fields})


def build(**fields: Any) -> TaggerNet:
    return create_model(config_of(**fields), n_labels=N_LABELS)


def error_of(**fields: Any) -> str:
    with pytest.raises(click.UsageError) as caught:
        build(**fields)
    assert "\n" not in caught.value.message
    return caught.value.message


def prepare(config: Config) -> State:
    nothing = TrainLabels(("a",) * N_LABELS, np.zeros((1, N_LABELS), np.uint8), None)
    model = create_model(config, n_labels=N_LABELS)
    state = create_state(config, model, torch.device("cpu"), steps_per_epoch=4, train=nothing)
    prepare_epoch(config, state)
    return state


def step(config: Config, state: State) -> Tensor:
    generator = torch.Generator().manual_seed(state.progress.steps)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 2, (4, N_LABELS), generator=generator).float()
    counts = train_step(
        config, state, [(images, targets, None, torch.rand(4, 64, generator=generator))]
    )
    state.progress.steps += 1
    return counts


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Stochastic depth


def test_the_rates_of_a_torchvision_network_are_those_that_it_is_built_with() -> None:
    def rates(network: nn.Module) -> list[float]:
        return [m.p for m in network.modules() if isinstance(m, StochasticDepth)]

    backbone = build(backbone="convnext_tiny", drop_path=0.3).backbone
    expected = rates(torchvision.models.convnext_tiny(stochastic_depth_prob=0.3))
    assert rates(backbone) == pytest.approx(expected) and len(expected) == 18
    own = rates(torchvision.models.convnext_tiny())
    assert rates(build(backbone="convnext_tiny").backbone) == own and max(own) == 0.1
    assert set(rates(build(backbone="convnext_tiny", drop_path=0.0).backbone)) == {0.0}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_the_rates_of_a_timm_network_rise_to_the_one_given(name: str) -> None:
    def rates(**fields: Any) -> list[float]:
        modules = build(backbone=f"timm/{name}", **fields).backbone.modules()
        return [m.drop_prob for m in modules if type(m).__name__ == "DropPath"]

    given = rates(drop_path=0.4)
    assert given == sorted(given) and given[-1] == pytest.approx(0.4)
    assert rates(drop_path=0.0) in ([], [0.0] * len(rates()))
    assert max(rates(), default=0.0) == pytest.approx(0.1 if "swin" in name else 0.0)


def test_blocks_are_skipped_in_training_alone_and_never_of_a_frozen_backbone() -> None:
    images = torch.randn(2, 3, 64, 64)
    for freeze, is_random in (("none", True), ("norms", True), ("backbone", False)):
        config = config_of(backbone="timm/test_vit", drop_path=0.9, freeze=freeze)
        model = prepare(config).model
        with torch.no_grad():
            assert torch.equal(model.backbone(images), model.backbone(images)) != is_random
            model.eval()
            assert torch.equal(model.backbone(images), model.backbone(images))


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v3_small", "timm/vgg11", "timm/hrnet_w18_small"]
)
def test_a_network_without_stochastic_depth_is_refused(backbone: str) -> None:
    message = error_of(backbone=backbone, drop_path=0.1)
    assert (
        f"drop_path=0.1 is for networks with stochastic depth, which backbone={backbone} lacks"
        in message
    )
    assert "give drop_path=-1" in message


def test_without_skipping_any_network_will_do() -> None:
    plain, off = (build(drop_path=rate).state_dict() for rate in (-1.0, 0.0))
    assert same(plain, off)


@pytest.mark.parametrize(
    ("value", "said"), [("-0.5", "must be -1 or at least 0"), ("1", "at most 0.9")]
)
def test_a_rate_out_of_range_is_refused(value: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        load_config(None, {"drop_path": value})


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_training_with_it_resumes_bit_for_bit(is_checkpointed: bool) -> None:
    config = config_of(
        backbone="timm/test_vit", drop_path=0.5, dropout=0.5, grad_checkpointing=is_checkpointed
    )
    whole = prepare(config)
    for n_steps in range(4):
        if n_steps == 2:
            saved = copy.deepcopy(whole.state_dict())
        step(config, whole)
    resumed = prepare(config)
    resumed.load_state_dict(saved)
    torch.rand(7)  # whatever a new process draws
    for _ in range(2):
        step(config, resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


# Gradient checkpointing

# Small ones, and slow ones of each way to build a block.
QUICK = ["resnet18", "mobilenet_v3_small", "timm/test_resnet", "timm/test_vit"]
OTHERS = ["convnext_tiny", "efficientnet_v2_s", "swin_t", "timm/tf_efficientnet_lite0"]


@pytest.mark.parametrize(
    "backbone", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)
def test_a_step_is_the_same_with_fewer_activations_kept(backbone: str) -> None:
    found, kept = [], []
    for is_checkpointed in (False, True):
        config = config_of(backbone=backbone, grad_checkpointing=is_checkpointed, optimizer="sgd")
        state = prepare(config)
        counts = step(config, state)
        found.append(copy.deepcopy(state.model.state_dict()) | {"counts": counts})
        kept.append(bytes_kept(state.model))
    assert same(*found)
    assert kept[1] < 0.9 * kept[0]


def bytes_kept(model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (start := tensor.untyped_storage().data_ptr()) not in weights:
            sizes[start] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(4, 3, 64, 64))
    return sum(sizes.values())


@pytest.mark.parametrize("backbone", ["resnet18", "timm/test_vit"])
def test_activations_are_not_kept_after_an_evaluation_within_an_epoch(backbone: str) -> None:
    model = prepare(config_of(backbone=backbone, grad_checkpointing=True)).model
    before = bytes_kept(model)
    torch_score(model, torch.device("cpu"))(np.zeros((1, 3, 64, 64), np.uint8))
    assert bytes_kept(model) == before


@pytest.mark.parametrize("fields", [{"freeze": "norms"}, {"freeze": "backbone"}, {"accumulate": 2}])
def test_it_goes_with_other_options(fields: dict[str, Any]) -> None:
    found = []
    for is_checkpointed in (False, True):
        config = config_of(grad_checkpointing=is_checkpointed, ema_epochs=1, **fields)
        state = prepare(config)
        before = copy.deepcopy(part_of(state.model, "running_mean"))
        step(config, state)
        found.append(state.evaluated.state_dict())
        is_frozen = "freeze" in fields
        assert same(before, part_of(state.model, "running_mean")) == is_frozen
    assert same(*found)


def part_of(model: nn.Module, end: str) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.endswith(end)}


@pytest.mark.parametrize("backbone", ["resnet18", "timm/test_resnet", "timm/test_vit"])
def test_an_exported_network_keeps_nothing_of_it(tmp_path: Path, backbone: str) -> None:
    fields = {"backbone": backbone, "grad_checkpointing": True}
    model = build(**fields, **({"drop_path": 0.5} if backbone == "timm/test_vit" else {}))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    decision = Decision(np.full(N_LABELS, 0.5, np.float32))
    settings = {"labels": ["a", "b", "c"], "image_size_px": 64, "config": {}}
    write_bundle(tmp_path / "bundle", model.train(), settings, decision, images)
    here = torch_score(model, torch.device("cpu"))(images)
    assert np.abs(Tagger.load(tmp_path / "bundle").score(images) - here).max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "option"),
    [({"compile": "on"}, "compile=on"), ({"cuda_graph": True}, "cuda_graph=true"),
     ({"sync_batchnorm": True}, "sync_batchnorm=true")],
)  # fmt: skip
def test_what_excludes_it_is_named(fields: dict[str, Any], option: str) -> None:
    message = error_of(grad_checkpointing=True, **fields)
    assert f"grad_checkpointing=true excludes {option}; leave out either" in message


def test_a_network_that_cannot_is_refused() -> None:
    message = error_of(backbone="timm/dla34", grad_checkpointing=True)
    assert "backbone=timm/dla34 has no gradient checkpointing" in message
