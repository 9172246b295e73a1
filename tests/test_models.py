import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.models import BACKBONES, HEADS, Scorer, TaggerNet, create_model

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


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_network_gives_a_logit_a_label_from_its_seed(backbone: str, head: str) -> None:
    model = build(backbone=backbone, head=head).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, N_LABELS) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert same(model.state_dict(), build(backbone=backbone, head=head).state_dict())


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


def test_the_backbone_computes_torchvisions_features(theirs: Path) -> None:
    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(theirs, weights_only=True))
    network.fc = nn.Identity()  # type: ignore[assignment]
    model = build(weights=str(theirs))
    model.head.linear = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), network.eval()(images))


# Weight files


def test_our_own_weights_come_back_whole(ours: Path) -> None:
    assert same(build(seed=1, weights=str(ours)).state_dict(), build(seed=7).state_dict())


def test_a_head_for_other_labels_starts_afresh(ours: Path) -> None:
    model = build(n_labels=N_LABELS + 1, seed=1, weights=str(ours))
    assert same(part(model, "backbone"), part(build(seed=7), "backbone"))
    assert same(part(model, "head"), part(build(n_labels=N_LABELS + 1, seed=1), "head"))


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


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"resnet18"}))
def test_weights_of_another_backbone_are_refused(ours: Path, theirs: Path, backbone: str) -> None:
    for path in (ours, theirs):
        message = error_of(backbone=backbone, weights=str(path))
        assert "do not fit the backbone" in message and "first; give the backbone" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ""])
@pytest.mark.parametrize("content", [b"", b"these are no weights\nat all\n", b"PK\x03\x04" * 9])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "give none, imagenet, or a .safetensors or .pth file" in error_of(weights=str(path))


def test_cut_off_weights_are_refused(tmp_path: Path, ours: Path, theirs: Path) -> None:
    for source in (ours, theirs):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes()[:10_000])
        assert "cannot read" in error_of(weights=str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"w": torch.ones(1)}}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert "holds no state dict of tensors" in error_of(weights=str(path))


def test_an_empty_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    torch.save({}, path)
    assert "do not fit the backbone" in error_of(weights=str(path))


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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_imagenet_weights_are_asked_for_by_the_backbones_name(
    monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    asked = []

    def give(url: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(url)
        assert kwargs["check_hash"] and kwargs["weights_only"]
        torch.manual_seed(8)
        state: dict[str, Tensor] = BACKBONES[backbone]().state_dict()
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
    model = build(backbone=backbone, weights="imagenet")
    assert len(asked) == 1 and f"/{backbone}-" in asked[0]
    torch.manual_seed(8)
    expected = BACKBONES[backbone]().state_dict()["conv1.weight"]
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], expected)
