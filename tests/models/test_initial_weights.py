"""Weights that a network starts from: the forms of their files, and what does not fit."""

import argparse
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from weight_forms import FORMS, StateDict, expected, prefixed, zeros

from nuswide.config import Config
from nuswide.models import weights
from nuswide.models.networks import TaggerNet, create_model
from nuswide.models.preprocessing import of_backbone, resolve_preprocessing

TINY = "timm/test_resnet"


def build(**fields: Any) -> TaggerNet:
    return create_model(Config(**{"backbone": TINY, "image_size_px": 32, **fields}), n_labels=5)


def error_of(**fields: Any) -> str:
    with pytest.raises(click.ClickException) as caught:
        build(**fields)
    assert "\n" not in caught.value.message
    return caught.value.message


def assert_backbone_is(model: TaggerNet, state: StateDict) -> None:
    own = model.backbone.network.state_dict()
    assert {
        n for n in state.keys() - own.keys() if not n.startswith(("fc.", "classifier."))
    } == set()
    for name, value in own.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, state[name])


@pytest.fixture(scope="module")
def state() -> StateDict:
    torch.manual_seed(8)
    found: StateDict = timm.create_model("test_resnet").state_dict()
    return found


@pytest.fixture(autouse=True)
def nothing_printed_yet() -> None:
    weights._print_once.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_each_form(tmp_path: Path, state: StateDict, form: str) -> None:
    FORMS[form](state, path := tmp_path / "weights")
    assert_backbone_is(build(weights=str(path)), expected(form, state))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("timm's .pth.tar", "from state_dict_ema, the moving average, not from state_dict"),
        ("torchvision's reference", "from model_ema, the moving average, not from model"),
        ("state_dict_ema", ""),
        ("Lightning's .ckpt", ""),
    ],
)
def test_which_of_two_networks_is_taken_is_said_once(
    tmp_path: Path, state: StateDict, form: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMS[form](state, path := tmp_path / "w.pth")
    for _ in range(2):
        build(weights=str(path))
    assert capsys.readouterr().out == (f"weights={path}: {said}\n" if said else "")


@pytest.mark.parametrize("prefix", ["ema_model.", "model_ema.module.", "ema."])
def test_the_moving_average_within_one_state_dict_is_taken(
    tmp_path: Path, state: StateDict, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = prefixed(zeros(state), "model.") | prefixed(state, prefix)
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    assert_backbone_is(build(weights=str(tmp_path / "w.pth")), state)
    assert f"from {prefix}*, the moving average, not from model.*" in capsys.readouterr().out


def test_two_moving_averages_are_refused(tmp_path: Path, state: StateDict) -> None:
    content = {"model": state, "model_ema": state, "slow_ema": state}
    torch.save(content, tmp_path / "w.pth")
    message = error_of(weights=str(tmp_path / "w.pth"))
    assert "holds several networks (model, model_ema, slow_ema)" in message


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.victim), "w")


@pytest.mark.parametrize("is_legacy", [True, False])
def test_options_beside_the_weights_cannot_execute_anything(
    tmp_path: Path, state: StateDict, is_legacy: bool
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    content = {"state_dict": state, "args": argparse.Namespace(lr=Evil(victim))}
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    message = error_of(weights=str(path))
    assert "it holds more than tensors" in message and "weights_only" not in message
    assert is_legacy or "tensors: io.open)" in message or "tensors: _io.open)" in message
    assert not victim.exists()


def test_tensors_beside_the_weights_are_left_alone(tmp_path: Path, state: StateDict) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state, "class_weights": torch.ones(3)}, path)
    assert_backbone_is(build(weights=str(path)), state)
    torch.save({**state, "epoch": 3}, path)
    assert f"weights={path} holds no state dict of tensors" in error_of(weights=str(path))


def test_a_checkpoint_with_entries_named_like_ours_is_no_checkpoint_of_ours(
    tmp_path: Path, state: StateDict
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"progress": 1, "best": 0.8, "ema": state, "model": state}, path)
    assert_backbone_is(build(weights=str(path)), state)


def test_what_a_file_holds_besides_tensors_is_named(tmp_path: Path, state: StateDict) -> None:
    torch.save({"state_dict": state, "best": Path("a")}, tmp_path / "w.pth")
    assert "(it holds more than tensors: pathlib." in error_of(weights=str(tmp_path / "w.pth"))


# Files of another network


@pytest.mark.parametrize(
    ("theirs", "backbone", "fitting"),
    [
        ("resnet50", "resnet18", "resnet50"),
        ("resnet34", "resnet18", "timm/resnet34"),
        ("mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v3_small"),
        ("timm/tf_efficientnet_lite1", "timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite1"),
        ("timm/test_vit2", TINY, "timm/test_vit2"),
        ("timm/test_efficientnet", "resnet18", "timm/test_efficientnet"),
    ],
)
def test_the_backbone_that_a_files_weights_fit_is_named(
    tmp_path: Path, theirs: str, backbone: str, fitting: str
) -> None:
    name = theirs.removeprefix("timm/")
    create = timm.create_model if theirs != name else torchvision.models.get_model
    path = tmp_path / f"{name}-0123abcd.safetensors"
    save_file(prefixed(create(name).state_dict(), "module."), path)
    message = error_of(backbone=backbone, weights=str(path))
    assert f"weights={path} do not fit backbone={backbone}: " in message
    assert message.endswith(f"; they fit backbone={fitting}")


def test_the_backbone_of_another_name_is_found_by_that_of_the_asked_one(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    FORMS["timm's .pth.tar"](timm.create_model("test_vit3").state_dict(), path)
    message = error_of(backbone="timm/test_vit2", weights=str(path))
    assert message.endswith("; they fit backbone=timm/test_vit3")


@pytest.mark.slow
def test_weights_that_fit_at_another_size_are_refused_with_that_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("mixer_s32_224").state_dict(), path := tmp_path / "w.pth")
    message = error_of(backbone="timm/mixer_s32_224", weights=str(path))
    assert message.endswith("; they fit it at image_size_px=224")


def test_weights_that_fit_nothing_known_are_refused_with_the_names_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nuswide.models.nearest._MOST_BUILT", 2)
    save_file({"encoder.first.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    message = error_of(weights=str(tmp_path / "w.safetensors"))
    assert "the file names its tensors encoder.first.weight, ..., the backbone conv1" in message
    assert "give the backbone they were trained with, or rename their tensors" in message


def test_without_timm_torchvisions_backbones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(torchvision.models.resnet50().state_dict(), path := tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert error_of(backbone="resnet18", weights=str(path)).endswith("they fit backbone=resnet50")


# ImageNet's, by version and tag

HAVE_V2 = ["resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d", "mobilenet_v3_large"]


@pytest.mark.parametrize(
    ("weights", "file"), [("imagenet", "0676ba61"), ("imagenet_v2", "11ad3fa6")]
)
def test_each_version_of_imagenets_weights_has_its_file(
    monkeypatch: pytest.MonkeyPatch, weights: str, file: str
) -> None:
    torch.manual_seed(8)
    theirs = torchvision.models.resnet50().state_dict()
    asked = []

    def load(url: str, **options: Any) -> StateDict:
        assert options["check_hash"] and options["weights_only"]
        asked.append(url)
        return theirs

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    model = build(backbone="resnet50", weights=weights)
    assert [url.rpartition("/")[2] for url in asked] == [f"resnet50-{file}.pth"]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[name])


@pytest.mark.parametrize("name", HAVE_V2)
def test_the_second_version_has_its_own_preprocessing(name: str) -> None:
    preset = torchvision.models.get_model_weights(name).IMAGENET1K_V2.transforms()
    own = of_backbone(name, "imagenet_v2")
    assert own["interpolation"] == preset.interpolation.value
    assert own["image_size_px"] == preset.crop_size[0]
    assert [float(x) for x in own["mean"].split(",")] == preset.mean


def test_a_second_version_that_does_not_exist_is_refused_with_what_does() -> None:
    message = error_of(backbone="swin_t", weights="imagenet_v2")
    assert "no weights=imagenet_v2 for backbone=swin_t, but imagenet" in message
    assert message.endswith(f"imagenet_v2 is for {', '.join(HAVE_V2)}")
    message = error_of(weights="imagenet_v2")
    assert "imagenet_v2 is torchvision's" in message and "timm/NAME.TAG" in message


def test_a_tag_selects_timms_weights_and_their_preprocessing() -> None:
    name = "timm/vit_base_patch16_224"
    for tag, mean in (("augreg_in21k", "0.5,0.5,0.5"), ("dino", "0.485,0.456,0.406")):
        config = Config(backbone=f"{name}.{tag}", image_size_px=0)
        resolved, source = resolve_preprocessing(config)
        assert (resolved.mean, source) == (mean, f"{name}.{tag}")
    sizes = {tag: of_backbone(f"timm/convnext_base.{tag}")["image_size_px"]
             for tag in ("fb_in22k_ft_in1k", "fb_in22k_ft_in1k_384")}  # fmt: skip
    assert sizes == {"fb_in22k_ft_in1k": 224, "fb_in22k_ft_in1k_384": 384}


def test_a_tags_weights_are_those_asked_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, create = [], timm.create_model

    def recording(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", recording)
    build(backbone=f"{TINY}.r160_in1k", weights="imagenet")
    assert asked == [("test_resnet.r160_in1k", True)]
    file_of = {
        tag: timm.get_pretrained_cfg(f"resnet18.{tag}").hf_hub_id for tag in ("a1_in1k", "tv_in1k")
    }
    assert len(set(file_of.values())) == 2


@pytest.mark.parametrize("tag", ["a4_in1k", "", "a1_in1k.b"])
def test_an_unknown_tag_is_refused_with_those_that_exist(tag: str) -> None:
    message = error_of(backbone=f"timm/resnet18.{tag}", weights="none")
    assert message.startswith(f"timm has no weights '{tag}' for backbone=timm/resnet18; its tags: ")
    assert "a1_in1k" in message and "tv_in1k" in message
