import numpy as np
import pytest
import torch

from nuswide.config import Config
from nuswide.models.backbones import BACKBONES
from nuswide.models.networks import create_model
from nuswide.models.optim import OPTIMIZERS, SCHEDULES, Ema, create_optimizer, learning_rate


def rates(**changes: object) -> list[float]:
    config = Config(epochs=10, lr=2.0, **changes)
    return [learning_rate(config, step=s, steps_per_epoch=10) for s in range(100)]


def test_the_articles_rate_is_constant() -> None:
    assert set(rates()) == {2.0}


def test_cosine_falls_from_the_rate_to_nearly_nothing() -> None:
    values = rates(schedule="cosine")
    assert values[0] == 2.0 and values[50] == pytest.approx(1.0) and 0 < values[-1] < 0.001
    assert (np.diff(values) < 0).all()


def test_one_cycle_equals_torchs_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=10_001, cycle_momentum=False
    )
    config = Config(epochs=100, lr=2.0, schedule="one_cycle")
    for step in range(10_000):
        ours = learning_rate(config, step=step, steps_per_epoch=100)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=2e-3)
        optimizer.step()
        theirs.step()


def test_a_warm_up_rises_in_equal_steps_to_the_rate() -> None:
    values = rates(warmup_epochs=1.0)
    assert values[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(values[10:]) == {2.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_stays_within_the_rate(schedule: str) -> None:
    assert all(0 < value <= 2.0 for value in rates(schedule=schedule, warmup_epochs=0.5))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_decays_weights_alone(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = create_optimizer(Config(optimizer=name, lr=0.01, weight_decay=0.1), model)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[id(model[0].weight)] == 0.1
    assert {decays[id(p)] for p in (model[0].bias, *model[1].parameters())} == {0.0}
    inputs, wanted = torch.randn(16, 4), torch.randn(16, 8)
    losses = []
    for _ in range(30):
        loss = (model(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("backbone", [*BACKBONES, "timm/test_vit", "timm/test_efficientnet"])
def test_layers_of_a_backbone_decay_from_the_head_to_the_images(backbone: str) -> None:
    config = Config(
        backbone=backbone, image_size_px=64, lr=1.0, backbone_lr_scale=0.5, layer_decay=0.9
    )
    model = create_model(config, n_labels=2)
    groups = create_optimizer(config, model).param_groups
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale_of) == len(list(model.parameters()))
    assert {scale_of[id(p)] for p in model.head.parameters()} == {1.0}
    scales = [scale_of[id(p)] for p in model.backbone.parameters()]
    assert max(scales) == pytest.approx(0.45) and min(scales) == scales[0]
    steps = np.log(np.array(sorted(set(scales))) / 0.5) / np.log(0.9)
    np.testing.assert_allclose(steps, range(len(steps), 0, -1))
    assert len(steps) >= 3


def test_without_scales_the_groups_are_those_of_version_0_2_0() -> None:
    model = create_model(Config(backbone="resnet18", image_size_px=32), n_labels=2)
    matrices, vectors = create_optimizer(Config(weight_decay=0.1), model).param_groups
    assert [p.ndim > 1 for p in matrices["params"]] and matrices["weight_decay"] == 0.1
    assert [p.ndim <= 1 for p in vectors["params"]] and vectors["weight_decay"] == 0.0
    expected = [p for p in model.parameters() if p.ndim > 1]
    assert all(one is two for one, two in zip(matrices["params"], expected, strict=True))


@pytest.mark.slow
def test_the_average_follows_its_definition_and_its_memory_fits_the_epochs() -> None:
    config = Config(backbone="resnet18")
    model = create_model(config, n_labels=2)
    ema = Ema(model, epochs=2, steps_per_epoch=50)
    assert ema.decay == pytest.approx(0.99)
    weight = model.head.linear.weight
    expected = weight.detach().clone()
    for step in range(300):
        with torch.no_grad():
            weight.add_(0.01)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        ema.update(model, step=step)
    torch.testing.assert_close(ema.model.head.linear.weight, expected)
    assert not ema.model.head.linear.weight.requires_grad


def test_the_average_forgets_the_start_within_an_epoch() -> None:
    config = Config(backbone="resnet18")
    model = create_model(config, n_labels=2)
    ema = Ema(model, epochs=20, steps_per_epoch=50)
    with torch.no_grad():
        model.head.linear.bias.fill_(1.0)
    for step in range(50):
        ema.update(model, step=step)
    assert ema.model.head.linear.bias.min() > 0.99
