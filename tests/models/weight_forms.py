"""A state dict as the files of many programs hold it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

StateDict = dict[str, Tensor]
Save = Callable[[StateDict, Path], None]


def prefixed(state: StateDict, prefix: str) -> StateDict:
    return {f"{prefix}{name}": value for name, value in state.items()}


def zeros(state: StateDict) -> StateDict:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def under(prefix: str) -> Save:
    return lambda state, path: torch.save(prefixed(state, prefix), path)


def inside(wrapper: str, **beside: Any) -> Save:
    return lambda state, path: torch.save({wrapper: state, **beside}, path)


def half(dtype: torch.dtype, save: Callable[..., None]) -> Save:
    return lambda state, path: save(
        {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}, path
    )


def optimizer_state() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def timm_training(state: StateDict, path: Path) -> None:
    """Of timm's train.py, with --model-ema."""
    content = {
        "epoch": 7, "arch": "resnet50", "state_dict": zeros(state), "version": 2, "metric": 71.5,
        "optimizer": optimizer_state(), "state_dict_ema": state,
        "args": argparse.Namespace(model="resnet50", lr=0.1, mean=None, aug=["a"]),
        "amp_scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }  # fmt: skip
    torch.save(content, path)


def torchvision_reference(state: StateDict, path: Path) -> None:
    """Of torchvision's references/classification/train.py, with --model-ema."""
    average = {"n_averaged": torch.tensor(5), **prefixed(state, "module.")}
    content = {
        "model": zeros(state), "optimizer": optimizer_state(), "epoch": 3, "model_ema": average,
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [0.1]}, "scaler": None,
        "args": argparse.Namespace(model="resnet50", opt="sgd"),
    }  # fmt: skip
    torch.save(content, path)


def lightning(state: StateDict, path: Path) -> None:
    """Of Lightning, for a module that keeps the network as `model`, and a loss with weights."""
    content = {
        "epoch": 2, "global_step": 90, "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(state, "model."), "criterion.pos_weight": torch.ones(3)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {
            "best_model_score": torch.tensor(0.5), "best_k_models": {"a.ckpt": torch.tensor(0.5)},
        }},
        "optimizer_states": [optimizer_state()], "lr_schedulers": [{"last_epoch": 2}],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "layers": [1, 2]},
    }  # fmt: skip
    torch.save(content, path)


def other_classifier(state: StateDict, path: Path) -> None:
    name = next(n for n in ("fc", "classifier") if f"{n}.weight" in state)
    n_features = state[f"{name}.weight"].shape[1]
    other = {f"{name}.weight": torch.ones(7, n_features), f"{name}.bias": torch.ones(7)}
    torch.save(state | other, path)


FORMS: dict[str, Save] = {
    "state dict": torch.save,
    "of torch before 1.6": lambda state, path: torch.save(
        state, path, _use_new_zipfile_serialization=False
    ),
    "safetensors": save_file,
    "module.": under("module."),
    "_orig_mod.": under("_orig_mod."),
    "module._orig_mod.": under("module._orig_mod."),
    "_orig_mod.module.": under("_orig_mod.module."),
    "prefixed safetensors": lambda state, path: save_file(prefixed(state, "_orig_mod."), path),
    "state_dict": inside("state_dict", epoch=3, best=0.7),
    "model": inside("model", optimizer=optimizer_state()),
    "model_ema": inside("model_ema"),
    "state_dict_ema": inside("state_dict_ema", args=argparse.Namespace(lr=0.1)),
    "timm's .pth.tar": timm_training,
    "torchvision's reference": torchvision_reference,
    "Lightning's .ckpt": lightning,
    "another classifier": other_classifier,
    "fp16": half(torch.float16, torch.save),
    "bf16 safetensors": half(torch.bfloat16, save_file),
}


def expected(form: str, state: StateDict) -> StateDict:
    """What is to be loaded: the state in float32, after its half precision if that was saved."""
    halves = {"fp16": torch.float16, "bf16 safetensors": torch.bfloat16}
    if form not in halves:
        return state
    return {n: v.to(halves[form]).float() if v.is_floating_point() else v for n, v in state.items()}
