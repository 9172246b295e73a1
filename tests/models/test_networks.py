import pickle
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels
from nuswide.deployment.export import write_weights
from nuswide.models.backbones import BACKBONES
from nuswide.models.networks import Scorer, TaggerNet, create_model
from nuswide.training.step import create_state, prepare_epoch

N_LABELS = 5


def build(n_labels: int = N_LABELS, **fields: Any) -> TaggerNet:
    return create_model(Config(**{"backbone": "resnet18", **fields}), n_labels=n_labels)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def part(model: nn.Module, name: str) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith(f"{name}.")}


def error_of(**fields: Any) -> str:
    """What a user reads: one line that names the weights given."""
    with pytest.raises(click.ClickException) as caught:
        build(**fields)
    assert "\n" not in caught.value.message
    assert str(fields["weights"]) in caught.value.message or fields["weights"] == "imagenet"
    return caught.value.message


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a resnet18 from seed 7, as a run leaves them."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(build(seed=7).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision resnet18's state dict, with its names and its 1000 classes."""
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


SMALL = {"resnet18", "mobilenet_v3_small"}
EACH = [pytest.param(name, marks=[] if name in SMALL else pytest.mark.slow) for name in BACKBONES]


@pytest.fixture(scope="module", params=EACH)
def one_of_each(request: pytest.FixtureRequest) -> tuple[str, TaggerNet]:
    return request.param, build(backbone=request.param, image_size_px=32)


def test_a_network_gives_a_logit_a_label_from_its_seed(
    one_of_each: tuple[str, TaggerNet],
) -> None:
    name, model = one_of_each
    with torch.no_grad():
        logits = model.eval()(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, N_LABELS) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert same(model.state_dict(), build(backbone=name).state_dict())


def test_a_backbone_gives_a_map_of_any_image(one_of_each: tuple[str, TaggerNet]) -> None:
    _, model = one_of_each
    n_features = model.head.linear.in_features
    with torch.no_grad():
        features = model.backbone.eval()(torch.zeros(2, 3, 64, 96))
    assert features.shape == (2, n_features, 2, 3)


def test_a_backbone_keeps_torchvisions_names_and_shapes(
    one_of_each: tuple[str, TaggerNet],
) -> None:
    name, model = one_of_each
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    own = {k.removeprefix("backbone."): v for k, v in part(model, "backbone").items()}
    assert {k: v.shape for k, v in own.items()}.items() <= {
        k: v.shape for k, v in theirs.items()
    }.items()
    classifier = ("fc.", "classifier.", "head.")
    assert all(k.startswith(classifier) for k in theirs.keys() - own.keys())


def test_every_weight_of_a_network_is_trained(one_of_each: tuple[str, TaggerNet]) -> None:
    # Processes that train together wait for the gradient of every one of them.
    _, model = one_of_each
    model.train().zero_grad()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_another_seed_gives_other_weights() -> None:
    one, two = build(seed=0).state_dict(), build(seed=1).state_dict()
    assert not torch.equal(one["backbone.conv1.weight"], two["backbone.conv1.weight"])
    assert not torch.equal(one["head.linear.weight"], two["head.linear.weight"])


def test_any_image_size_goes_through() -> None:
    model = build().eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 40, 72)).shape == (1, N_LABELS)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("backbone", "resnet19", "did you mean resnet18"), ("head", "liner", "did you mean linear")],
)
def test_an_unknown_name_is_refused_with_the_nearest(field: str, value: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=rf"unknown {field} '{value}'; {said}\?"):
        build(**{field: value})


def test_the_head_alone_is_trained_on_any_backbone(one_of_each: tuple[str, TaggerNet]) -> None:
    name, model = one_of_each
    config = Config(backbone=name, image_size_px=32, head_epochs=1)
    nothing = TrainLabels(("a",) * N_LABELS, np.zeros((1, N_LABELS), np.uint8), None)
    device = torch.device("cpu")
    state = create_state(config, model, device, steps_per_epoch=1, train=nothing)
    prepare_epoch(config, state)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith("head.")}
    assert not any(module.training for module in model.backbone.modules())
    state.progress.epoch = 1
    prepare_epoch(config, state)
    assert all(p.requires_grad and m.training for p in model.parameters() for m in [model.backbone])


def test_dropout_works_in_training_only() -> None:
    model, features = build(dropout=0.9), torch.ones(1, 512, 2, 2)
    model.eval()
    assert torch.equal(model.head(features), model.head(features))
    model.train()
    assert not torch.equal(model.head(features), model.head(features))


def test_the_scorer_takes_bytes_and_gives_scores() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        scores = Scorer(build()).eval()(images)
    assert scores.shape == (2, N_LABELS)
    assert ((scores > 0) & (scores < 1)).all()


def test_with_test_flips_an_image_and_its_mirror_image_have_the_mean_of_their_scores() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    plain, both = (Scorer(build(test_flips=flips)).eval() for flips in (False, True))
    with torch.no_grad():
        here, there = plain(images), plain(images.flip(-1))
        assert (here - there).abs().max() > 1e-3
        torch.testing.assert_close(both(images), (here + there) / 2)
        torch.testing.assert_close(both(images.flip(-1)), (here + there) / 2)
    assert same(plain.state_dict(), both.state_dict())


# convnext_tiny's norm is another here, and mobilenet_v3's classifier has a layer more.
LIKE_TORCHVISIONS = ("resnet18", "resnext50_32x4d", "efficientnet_v2_s", "swin_t")


@pytest.mark.parametrize("name", LIKE_TORCHVISIONS)
def test_the_backbone_computes_torchvisions_features(tmp_path: Path, name: str) -> None:
    torch.manual_seed(8)
    network = torchvision.models.get_model(name)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    last = "fc" if hasattr(network, "fc") else "head" if hasattr(network, "head") else "classifier"
    setattr(network, last, nn.Identity())
    model = build(backbone=name, weights=str(tmp_path / "theirs.pth"))
    model.head.linear = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), network.eval()(images))


def test_convnext_normalises_each_place_as_torchvision_does_after_pooling() -> None:
    model = build(backbone="convnext_tiny")
    theirs = torchvision.models.convnext_tiny()
    own = {k.removeprefix("backbone."): v for k, v in part(model, "backbone").items()}
    theirs.load_state_dict(own, strict=False)
    images = torch.rand(1, 3, 32, 32)  # whose map has one place
    with torch.no_grad():
        torch.testing.assert_close(
            model.backbone.eval()(images), theirs.eval().classifier[0](theirs.features(images))
        )


# Weight files


def test_our_own_weights_come_back_whole(ours: Path) -> None:
    assert same(build(seed=1, weights=str(ours)).state_dict(), build(seed=7).state_dict())


def test_a_head_for_other_labels_starts_afresh(ours: Path) -> None:
    model = build(n_labels=N_LABELS + 1, seed=1, weights=str(ours))
    assert same(part(model, "backbone"), part(build(seed=7), "backbone"))
    assert same(part(model, "head"), part(build(n_labels=N_LABELS + 1, seed=1), "head"))


def test_weights_that_name_other_labels_give_no_head(tmp_path: Path) -> None:
    def train_of(*names: str) -> TrainLabels:
        return TrainLabels(names, np.zeros((1, 2), np.uint8), None)

    path = tmp_path / "model.safetensors"
    write_weights(path, build(n_labels=2, seed=7), ["sky", "sea"])
    for names, is_taken in ((("sky", "sea"), True), (("sea", "sky"), False)):
        config = Config(backbone="resnet18", seed=1, weights=str(path))
        model = create_model(config, n_labels=2, train=train_of(*names))
        assert same(part(model, "backbone"), part(build(n_labels=2, seed=7), "backbone"))
        assert same(part(model, "head"), part(build(n_labels=2, seed=7), "head")) == is_taken


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_weights_give_the_backbone_and_leave_the_head(
    tmp_path: Path, theirs: Path, suffix: str
) -> None:
    state, path = torch.load(theirs, weights_only=True), tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    model = build(seed=1, weights=str(path))
    loaded = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    assert same(part(model, "backbone"), loaded)
    assert same(part(model, "head"), part(build(seed=1), "head"))


def test_weights_of_1000_classes_do_not_become_the_head_of_1000_labels(theirs: Path) -> None:
    model = build(n_labels=1000, seed=1, weights=str(theirs))
    assert same(part(model, "head"), part(build(n_labels=1000, seed=1), "head"))


def test_weights_of_another_backbone_are_refused(ours: Path, theirs: Path) -> None:
    for path in (ours, theirs):
        message = error_of(backbone="resnet50", weights=str(path))
        assert f"weights={path} do not fit backbone=resnet50: 221 of its 318 tensors" in message
        assert "layer1.0.conv1.weight first; they fit backbone=resnet18" in message


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "timm/test_vit"])
def test_weights_of_other_names_are_refused_with_the_first_names_of_both(
    theirs: Path, backbone: str
) -> None:
    message = error_of(backbone=backbone, weights=str(theirs))
    first = {"mobilenet_v3_small": "features.0.0.weight", "timm/test_vit": "cls_token"}[backbone]
    assert "the file names its tensors conv1.weight, bn1.weight, bn1.bias, ..." in message
    assert f"the backbone {first}, " in message


@pytest.mark.parametrize("in_ours", [False, True])
def test_weights_of_a_larger_network_are_refused(tmp_path: Path, in_ours: bool) -> None:
    # All 120 tensors of resnet18's backbone are in it, of the same shapes.
    state = torchvision.models.resnet34().state_dict()
    if in_ours:
        state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "resnet34.safetensors")
    message = error_of(weights=str(tmp_path / "resnet34.safetensors"))
    assert f"do not fit backbone=resnet18: 96 of the file's {len(state)} tensors" in message
    assert "are of a larger one, layer1.2." in message


def test_weights_of_a_larger_timm_network_are_refused(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("test_resnet").state_dict()
    state["layer4.1.conv1.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "larger.safetensors")
    message = error_of(backbone="timm/test_resnet", weights=str(tmp_path / "larger.safetensors"))
    assert f"1 of the file's {len(state)} tensors are of a larger one, layer4.1.conv1" in message


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        (None, "module."), (None, "_orig_mod."), ("state_dict", ""), ("model", "backbone."),
        ("state_dict", "module._orig_mod."), ("weights", "net.encoder."),
    ],
)  # fmt: skip
def test_wrapped_and_prefixed_weights_are_found(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    import timm

    state = timm.create_model("test_resnet").state_dict()
    content = {f"{prefix}{k}": v for k, v in state.items()} | {"decoder.bias": torch.zeros(1)}
    optimizer = {"state": {0: {"step": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]}
    beside = {"epoch": 3, "optimizer": optimizer, "ema": {}}
    torch.save({wrapper: content, **beside} if wrapper else content, tmp_path / "w.pth")
    fields = {"backbone": "timm/test_resnet", "image_size_px": 32, "seed": 1}
    model = build(**fields, weights=str(tmp_path / "w.pth"))
    expected = {f"backbone.network.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    assert same(part(model, "backbone"), expected)
    assert same(part(model, "head"), part(build(**fields), "head"))


def test_weights_without_the_counts_that_old_torch_did_not_save_are_loaded(
    tmp_path: Path, theirs: Path
) -> None:
    state = torch.load(theirs, weights_only=True)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) == len(state) - 20
    torch.save(old, tmp_path / "old.pth")
    own, expected = (build(weights=str(path)) for path in (tmp_path / "old.pth", theirs))
    assert same(own.state_dict(), expected.state_dict())


def test_our_own_weights_come_back_whole_from_under_a_prefix(tmp_path: Path, ours: Path) -> None:
    state = {f"module.{k}": v for k, v in load_file(ours).items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    model = build(seed=1, weights=str(tmp_path / "w.pth"))
    assert same(model.state_dict(), build(seed=7).state_dict())


@pytest.mark.parametrize("is_nested", [True, False])
def test_a_file_of_two_networks_is_refused(tmp_path: Path, theirs: Path, is_nested: bool) -> None:
    state = torch.load(theirs, weights_only=True)
    both = {"student": state, "teacher": state}
    flat = {f"{name}.{k}": v for name, one in both.items() for k, v in one.items()}
    torch.save(both if is_nested else flat, tmp_path / "w.pth")
    message = error_of(weights=str(tmp_path / "w.pth"))
    assert "hold" in message and "several" in message
    assert "student" in message and "teacher" in message


def test_a_weights_files_form_is_told_by_its_content(
    tmp_path: Path, ours: Path, theirs: Path
) -> None:
    for source, name in ((ours, "ours.pth"), (theirs, "theirs.safetensors")):
        shutil.copy(source, tmp_path / name)
        given, copied = (build(weights=str(path)) for path in (source, tmp_path / name))
        assert same(given.state_dict(), copied.state_dict())


def test_a_pickled_network_is_refused_without_advice_to_execute_it(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "network": nn.Linear(1, 1)}, tmp_path / "whole.pth")
    message = error_of(weights=str(tmp_path / "whole.pth"))
    assert "it holds more than tensors" in message and "weights_only" not in message
    assert "torch.save(model.state_dict(), FILE)" in message


def test_a_head_that_fits_in_part_starts_afresh(tmp_path: Path, ours: Path) -> None:
    state = {k: v for k, v in load_file(ours).items() if k != "head.linear.bias"}
    save_file(state, tmp_path / "part.safetensors")
    model = build(seed=1, weights=str(tmp_path / "part.safetensors"))
    assert same(part(model, "head"), part(build(seed=1), "head"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ""])
@pytest.mark.parametrize("content", [b"", b"these are no weights\nat all\n", b"PK\x03\x04" * 9])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "give none, imagenet, imagenet_v2, or a .safetensors or .pth file" in error_of(
        weights=str(path)
    )


def test_cut_off_weights_are_refused(tmp_path: Path, ours: Path, theirs: Path) -> None:
    for source in (ours, theirs):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes()[:10_000])
        assert "cannot read" in error_of(weights=str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"w": 1.0}}, {"progress": 1}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert "holds no state dict of tensors" in error_of(weights=str(path))


def test_an_empty_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    torch.save({}, path)
    assert "do not fit backbone=resnet18" in error_of(weights=str(path))


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth", "folder.pth"])
def test_missing_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert "cannot read weights=" in error_of(weights=str(tmp_path / name))


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.victim), "w")


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, how: str, suffix: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / f"weights{suffix}"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(victim), protocol=2))
    else:
        torch.save({"conv1.weight": Malicious(victim)}, path)
    assert "cannot read weights=" in error_of(weights=str(path))
    assert not victim.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes()).close()  # the bait is live
        assert victim.exists()


# ImageNet


def test_imagenet_weights_without_a_network_are_a_plain_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    message = error_of(weights="imagenet")
    assert "Name or service not known" in message
    assert "resnet18" in message and "weights=FILE" in message


@pytest.mark.parametrize("backbone", EACH)
def test_imagenet_weights_are_asked_for_by_the_backbones_name(
    monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    asked = []

    def give(url: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(url)
        assert kwargs["check_hash"] and kwargs["weights_only"]
        torch.manual_seed(8)
        state: dict[str, Tensor] = torchvision.models.get_model(backbone).state_dict()
        states.append(state)
        return state

    states: list[dict[str, Tensor]] = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
    model = build(backbone=backbone, weights="imagenet")
    assert len(asked) == 1 and f"/{backbone}-" in asked[0]
    for name, value in part(model, "backbone").items():
        assert torch.equal(value, states[0][name.removeprefix("backbone.")])


# timm

IN_MANY_FORMS = [  # a map, tokens of places, and channels last
    "test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224",
]  # fmt: skip


@pytest.mark.parametrize("name", IN_MANY_FORMS)
def test_a_timm_network_gives_a_map_whatever_its_form(name: str) -> None:
    model = build(backbone=f"timm/{name}", image_size_px=64)
    n_features = model.head.linear.in_features
    features = model.backbone(torch.randn(2, 3, 64, 64))
    assert features.ndim == 4 and features.shape[:2] == (2, n_features)
    assert features.shape[2] == features.shape[3]
    model.head(features).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_tokens_of_a_timm_network_are_where_their_patches_are() -> None:
    model = build(backbone="timm/test_vit", image_size_px=64).eval()
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, 16:32, 48:64] = 5.0  # one patch of 16 px
    with torch.no_grad():
        tokens = model.backbone.network(images)
        features = model.backbone(images)
    place = 1 * 4 + 3 + model.backbone.network.num_prefix_tokens
    assert torch.equal(features[1, :, 1, 3], tokens[1, place])


def test_a_start_size_that_a_network_does_not_take_is_refused() -> None:
    fields = {"backbone": "timm/swin_tiny_patch4_window7_224", "image_size_px": 64}
    build(**fields)
    with pytest.raises(click.ClickException, match="does not take start_size_px=32") as caught:
        build(**fields, start_size_px=32)
    assert "\n" not in caught.value.message


def test_timms_own_weight_names_are_known(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(8)
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    save_file(state, tmp_path / "theirs.safetensors")
    model = build(backbone="timm/test_resnet", weights=str(tmp_path / "theirs.safetensors"))
    for name, value in part(model, "backbone").items():
        assert torch.equal(value, state[name.removeprefix("backbone.network.")])


def test_an_unknown_timm_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(click.UsageError, match=r"'test_resnett'; did you mean test_resnet\?"):
        build(backbone="timm/test_resnett")


def test_a_timm_network_without_its_prefix_is_answered_with_it() -> None:
    for name in ("tf_efficientnet_lite0", "resnet34"):
        with pytest.raises(click.UsageError, match=rf"'{name}'; did you mean timm/{name}\?"):
            build(backbone=name)


def test_timms_weights_without_a_network_are_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = error_of(backbone="timm/test_resnet", weights="imagenet")
    assert "fetch the weights elsewhere and use weights=FILE" in message
    assert "Retrying" not in caplog.text
    assert not constants.HF_HUB_OFFLINE


def test_a_size_that_a_backbone_does_not_take_is_refused_in_one_line() -> None:
    with pytest.raises(click.ClickException) as caught:
        build(backbone="timm/inception_v3", image_size_px=64)
    assert "\n" not in caught.value.message
    assert "timm/inception_v3 does not take image_size_px=64" in caught.value.message


def test_timm_without_its_extra_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(click.ClickException, match=r"pip install 'nuswide\[timm\]'"):
        build(backbone="timm/resnet18")
