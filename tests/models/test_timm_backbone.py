"""Networks of timm as backbones: what they keep of the trained network, and where its map is."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.models import timm_backbone
from nuswide.models.networks import TaggerNet, create_model
from nuswide.models.timm_backbone import TimmBackbone, create_timm
from nuswide.models.timm_networks import remove_classifier


def build(name: str, size_px: int = 64, **fields: Any) -> TaggerNet:
    fields = {"backbone": f"timm/{name}", "image_size_px": size_px, **fields}
    return create_model(Config(**fields), n_labels=5)


def backbone_of(name: str, size_px: int = 64) -> TimmBackbone:
    config = Config(backbone=f"timm/{name}", weights="none", image_size_px=size_px)
    return create_timm(config).eval()


@torch.no_grad()
def randomize(network: nn.Module) -> nn.Module:
    """As if trained: norms that are not those of the initialization."""
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


# Parts of a classifier: a normalization right before its linear layer, and hidden layers. A pooling
# by attention is replaced by the head of ours.
CLASSIFIERS = (
    "head.bn.",
    "head_dist.",
    "head.head.bn.",
    "head.head_dist.bn.",
    "head.fc.",
    "attn_pool.",
)
POOL_LAST = ("vision_transformer", "eva", "beit", "naflexvit")


def pretrained_networks() -> list[str]:
    """All of the modules that normalize after pooling, and one of each family of the others."""
    families = defaultdict(list)
    for name in sorted({name.partition(".")[0] for name in timm.list_models(pretrained=True)}):
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        alone = name if module in POOL_LAST else name.partition("_")[0]
        families[module, alone].append(name)
    return [min(names, key=len) for names in families.values()]


@pytest.mark.slow
def test_no_pretrained_tensor_but_those_of_the_classifier_is_lost() -> None:
    names = pretrained_networks()
    assert len(names) > 400
    lost = {}
    for name in names:
        with torch.device("meta"):
            network = timm.create_model(name)
        classifier = network.pretrained_cfg["classifier"] or ()
        ends = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        whole = set(network.state_dict())
        kept = set(remove_classifier(network).state_dict())
        gone = [k for k in whole - kept if not k.startswith((*ends, *CLASSIFIERS))]
        if gone or kept - whole:
            lost[name] = (gone, kept - whole)
    assert lost == {}


@pytest.mark.parametrize("name", ["test_vit2", "test_vit4", "test_vit_relpos"])
def test_a_trained_norm_after_pooling_is_used(tmp_path: Path, name: str) -> None:
    torch.manual_seed(8)
    theirs = randomize(timm.create_model(name, img_size=64)).eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    backbone = build(name, weights=str(tmp_path / "theirs.safetensors")).eval().backbone
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = theirs.fc_norm(theirs.forward_features(images))[:, theirs.num_prefix_tokens :]
        features = backbone(images)
    assert torch.allclose(features.flatten(2).transpose(1, 2), tokens, atol=1e-5)
    state = backbone.network.state_dict()
    kept = {k for k in theirs.state_dict() if not k.startswith("head.")}
    assert kept == state.keys()


# Networks whose pooling cannot be turned off, or whose map forward() does not return.
INDIRECT = {
    "deit_tiny_distilled_patch16_224": "forward_features",
    "efficientvit_b0": "forward_features",
    "inception_next_atto": "forward_features",
    "pit_ti_224": "forward_intermediates",
    "efficientvim_m1": "forward_intermediates",
    "levit_128s": "forward",
    "test_vit": "forward",
}


@pytest.mark.parametrize(
    "name", [n if n == "test_vit" else pytest.param(n, marks=pytest.mark.slow) for n in INDIRECT]
)
def test_the_map_of_each_network_is_found_and_all_of_it_is_trained(name: str) -> None:
    backbone = backbone_of(name, 128)
    assert backbone.way == INDIRECT[name]
    features = backbone(torch.randn(2, 3, 128, 128))
    assert features.ndim == 4 and features.shape[2] == features.shape[3] > 1
    features.sum().backward()
    trained = {n for n, p in backbone.network.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in backbone.network.named_parameters() if p.grad is not None}
    backbone.requires_grad_(False).requires_grad_()
    assert trained == {n for n, p in backbone.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "stride"), [("pit_ti_224", 32), ("test_vit2", 16)])
def test_the_map_is_where_its_patches_are(name: str, stride: int) -> None:
    """A spot in the images changes the features most at its place in the map."""
    torch.manual_seed(0)
    size_px = 6 * stride
    backbone = backbone_of(name, size_px)
    images = torch.zeros(2, 3, size_px, size_px)
    images[1, :, stride : 2 * stride, 4 * stride : 5 * stride] = 3.0
    with torch.no_grad():
        features = backbone(images)
    change = (features[1] - features[0]).norm(dim=0)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert (row / change.shape[0], column / change.shape[1]) == pytest.approx(
        (1 / 6, 4 / 6), abs=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("hiera_tiny_224", "head.norm"), ("levit_128s", ""), ("mixer_s32_224", "norm"),
        ("twins_pcpvt_small", "norm"), ("resmlp_12_224", "norm"),
    ],
)  # fmt: skip
def test_tokens_without_a_prefix_are_in_the_order_of_timms_own_maps(name: str, norm: str) -> None:
    backbone = backbone_of(name, 224)
    assert backbone.way == "forward"
    images = torch.randn(1, 3, 224, 224)
    normalize = backbone.network.get_submodule(norm) if norm else nn.Identity()
    with torch.no_grad():
        maps = backbone.network.forward_intermediates(images, indices=1, intermediates_only=True)
        expected = normalize(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(backbone(images), expected, atol=1e-5)


def test_position_embeddings_of_a_file_are_interpolated_to_the_size(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", img_size=64)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    network = build("test_vit", 96, weights=str(tmp_path / "theirs.safetensors")).backbone.network
    expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed, (6, 6), num_prefix_tokens=1)
    assert theirs.pos_embed.shape[1] == 1 + 4 * 4
    assert torch.allclose(network.pos_embed, expected)
    assert torch.equal(network.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)


def test_only_position_embeddings_are_changed_to_fit(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", img_size=64, patch_size=8)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(click.ClickException, match=r"2 of its \d+ tensors are .* of another shape"):
        build("test_vit", 64, weights=str(tmp_path / "theirs.safetensors"))


def test_a_checkpoint_with_the_earlier_name_of_a_norm_is_read(tmp_path: Path) -> None:
    model = build("test_vit2", seed=7)
    state = model.state_dict()
    earlier: dict[str, Tensor] = {k.replace("fc_norm.", "norm."): v for k, v in state.items()}
    assert earlier.keys() != state.keys()
    save_file(earlier, tmp_path / "earlier.safetensors")
    loaded = build("test_vit2", weights=str(tmp_path / "earlier.safetensors")).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    build("test_vit2").load_state_dict(earlier)  # as a resumed run


def test_an_encoder_without_a_classifier_is_taken_as_it_is() -> None:
    encoder = nn.Identity()
    assert remove_classifier(encoder) is encoder


def test_a_network_that_takes_its_own_size_alone_says_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_model(name: str, **options: Any) -> nn.Module:
        raise TypeError("Net.__init__() got an unexpected keyword argument 'img_size'")

    monkeypatch.setattr("timm.create_model", create_model)
    with pytest.raises(click.ClickException, match="takes image_size_px=160 alone, not 64"):
        build("test_vit")


def test_a_network_without_a_map_is_refused_with_what_it_returns() -> None:
    class Pooled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

        forward_features = forward

        def forward_intermediates(self, images: Tensor, **options: Any) -> list[Tensor]:
            return [self(images)]

    config = Config(backbone="timm/test_vit", image_size_px=64)
    with pytest.raises(click.ClickException, match=r"no feature map \(it returns \(1, 3\)\)"):
        timm_backbone._find_way(Pooled(), config)
