"""One optimizer step: forward, loss, backward, update, in the configured precision.

Owns State, which a checkpoint holds, and train_step. Knows nothing of epochs or splits.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.data import transforms
from nuswide.data.label_stats import TrainLabels
from nuswide.models.backbones import norm_layers
from nuswide.models.losses import Criterion, LabelCounts, create_criterion
from nuswide.models.networks import TaggerNet
from nuswide.models.optim import Ema, create_optimizer, learning_rate
from nuswide.models.weights import StateDict
from nuswide.training.step_metrics import step_counts

_WORTH_COMPILING = 20_000  # steps; compiling takes a minute or two
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """How far training is. steps: optimizer steps taken; step_in_epoch: those of this epoch.

    tested: steps after which test was last evaluated. train_s: seconds of training alone.
    stale_epochs: epochs since the best mAP on val.
    """

    steps: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    tested: int = 0
    train_s: float = 0.0
    loss_sum: float = 0.0
    stale_epochs: int = 0


@dataclass(frozen=True)
class Best:
    """The weights that `select_on` chose, after how many steps, and the mAP that chose them."""

    weights: StateDict
    steps: int
    map: float


@dataclass
class State:
    """All that changes during training.

    network: the model as a step calls it: wrapped for several processes, compiled or captured;
    the head alone if it trains on feature maps.
    counts: of train's labels, for each epoch's criterion. dtype: of the network under autocast.
    map_shape: (F, h, w) of the feature maps that a step takes in place of images, if it does.
    """

    model: TaggerNet
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    counts: LabelCounts
    criterion: Criterion
    device: torch.device
    dtype: torch.dtype
    steps_per_epoch: int
    map_shape: tuple[int, ...] | None = None
    progress: Progress = field(default_factory=Progress)
    best: Best | None = None
    is_head_only: bool | None = None  # None before the first epoch

    @property
    def evaluated(self) -> TaggerNet:
        """The network that is evaluated: the moving average if there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint needs."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "best": vars(self.best) if self.best else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.best = Best(**state["best"]) if state["best"] else None


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu, cuda or mps: with many processes, this process's own GPU.

    Raises click.ClickException for a missing GPU.
    """
    if name == "mps":
        return _apple_gpu()
    if name == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("device=cuda, but torch finds no GPU; give device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if (index := distributed.local_rank()) >= (there := torch.cuda.device_count()):
        raise click.ClickException(
            f"this machine has {there} GPUs, too few for its processes; give torchrun "
            f"--nproc-per-node={there}"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _apple_gpu() -> torch.device:
    if not torch.backends.mps.is_available():
        raise click.ClickException(
            "device=mps, but torch finds no Apple GPU; give device=auto or cpu"
        )
    if distributed.world_size() > 1:
        raise click.ClickException("device=mps trains in one process; start it without torchrun")
    return torch.device("mps")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type for auto, fp32, bf16 or fp16, if the device computes in it.

    Raises click.ClickException if it does not.
    """
    on_gpu = device.type == "cuda"
    if device.type == "mps" and name not in ("auto", "fp32"):
        raise click.ClickException(f"precision={name} is not for device=mps; give auto or fp32")
    if name == "auto":
        name = "bf16" if on_gpu and torch.cuda.is_bf16_supported(False) else "fp32"
    if name == "fp16" and not on_gpu:
        raise click.ClickException("precision=fp16 needs a GPU; give auto, fp32 or bf16")
    return _DTYPES[name]


def create_state(
    config: Config,
    model: TaggerNet,
    device: torch.device,
    *,
    steps_per_epoch: int,
    train: TrainLabels,
    map_shape: tuple[int, ...] | None = None,
) -> State:
    """Move a model to its device, and create all else that training needs; see State."""
    if config.sync_batchnorm:
        if device.type != "cuda":
            raise click.ClickException(
                "sync_batchnorm=true needs GPUs; give sync_batchnorm=false on CPUs"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device).to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True  # there are few shapes
    dtype = choose_precision(config.precision, device)
    ema = None
    if config.ema_epochs:
        ema = Ema(model, epochs=config.ema_epochs, steps_per_epoch=steps_per_epoch)
    counts = _counts(train, device)
    return State(
        model=model,
        network=model,
        optimizer=create_optimizer(config, model),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        ema=ema,
        counts=counts,
        criterion=create_criterion(config, counts, epoch=0),
        device=device,
        dtype=dtype,
        steps_per_epoch=steps_per_epoch,
        map_shape=map_shape,
    )


def _counts(train: TrainLabels, device: torch.device) -> LabelCounts:
    positives, known = (torch.from_numpy(n).float() for n in (train.positives, train.n_known))
    return LabelCounts(positives.to(device), known.to(device))


def prepare_epoch(config: Config, state: State) -> None:
    """Set the loss and the trained parameters of the current epoch: at first the head, then all.

    What freeze names is never trained.
    """
    state.criterion = create_criterion(config, state.counts, epoch=state.progress.epoch)
    head_only = config.freeze == "backbone" or state.progress.epoch < config.head_epochs
    frozen = norm_layers(state.model.backbone) if config.freeze == "norms" else []
    state.model.train()
    if head_only:  # its weights cannot adapt to new statistics
        state.model.backbone.eval()
    for layer in frozen:
        layer.eval()
    if head_only == state.is_head_only:
        return
    state.is_head_only = head_only
    state.model.backbone.requires_grad_(not head_only)
    for layer in frozen:
        layer.requires_grad_(False)
    trained = state.model.head if state.map_shape else state.model
    state.network = distributed.wrap(trained, state.device)
    if _wants_compiling(config, state):
        state.network = _compile(config, state)
    elif _can_capture(config, state):
        state.network = _capture(config, state)


def _wants_compiling(config: Config, state: State) -> bool:
    if config.grad_checkpointing:
        return False
    if config.compile != "auto":
        return config.compile == "on"
    many = config.epochs * state.steps_per_epoch >= _WORTH_COMPILING
    return many and state.device.type == "cuda"


def _compile(config: Config, state: State) -> nn.Module:
    """Return the compiled network, or the network itself where compiling fails.

    It is tried on every image size to come, as torch may recompile for each.
    """
    epochs = range(state.progress.epoch, config.epochs)
    sides = {transforms.side_px(config, epoch=epoch) for epoch in epochs}
    click.echo("compiling the network, which takes a minute or two")
    network = state.network
    with _buffers_kept(state):
        try:
            compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
            for side in sorted(sides):
                with _autocast(state):
                    logits = compiled(_example(config, state, side))
                logits.float().sum().backward()
        except Exception as error:  # training also works without the compiler
            reason = _first_line(error)
            click.echo(
                f"compile={config.compile} does not work here ({reason}); continuing without it"
            )
            torch._dynamo.reset()
            compiled = network
    return compiled


class _Captured(nn.Module):
    """A wrapper around a network for capturing, which replaces the wrapper's forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(images)
        return logits


def _can_capture(config: Config, state: State) -> bool:
    """Whether the network can be a CUDA graph: one image size, one process, one backward a step.

    A second backward before the step would overwrite the first one's gradients, which are in the
    graph's own memory.
    """
    if not config.cuda_graph or state.device.type != "cuda":
        return False
    return config.accumulate == distributed.world_size() == 1 and not config.start_size_px


def _capture(config: Config, state: State) -> nn.Module:
    """Return the network as CUDA graphs of forward and backward, or itself where that fails.

    At batch size 32 a GPU computes faster than Python launches kernels; a graph is one launch.
    """
    example = _example(config, state, config.image_size_px)
    network = _Captured(state.network)
    with _buffers_kept(state):
        try:
            with _autocast(state, cache=False):  # cached casts would not be part of the graph
                torch.cuda.make_graphed_callables(network, (example,))
        except Exception as error:  # training also works without graphs
            click.echo(f"cuda_graph does not work here ({_first_line(error)}); continuing without")
            return state.network
    return network


def _example(config: Config, state: State, side: int) -> Tensor:
    shape = state.map_shape or (3, side, side)
    inputs = torch.zeros(config.batch_size, *shape, device=state.device)
    return inputs.contiguous(memory_format=torch.channels_last)


@contextmanager
def _buffers_kept(state: State) -> Iterator[None]:
    """Restore the running statistics and clear the gradients after trying the network."""
    buffers = [b.clone() for b in state.model.buffers()]
    yield
    state.optimizer.zero_grad()
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _autocast(state: State, *, cache: bool = True) -> torch.autocast:
    enabled = state.dtype != torch.float32
    return torch.autocast(state.device.type, state.dtype, enabled=enabled, cache_enabled=cache)


MicroBatch = tuple[Tensor, Tensor, Tensor | None, Tensor]


def train_step(config: Config, state: State, micro_batches: Iterable[MicroBatch]) -> Tensor:
    """Take one optimizer step; return its counts, see step_metrics.step_counts.

    micro_batches: `accumulate` times uint8 images or feature maps, targets and known on the
    device, and draws.
    Randomness inside the network follows from seed, step and process, so that resuming needs no
    state of it.
    """
    step = state.progress.steps
    seed = np.random.SeedSequence([config.seed, step, distributed.rank()])
    torch.manual_seed(int(seed.generate_state(1)[0]))
    for group in state.optimizer.param_groups:
        rate = learning_rate(config, step=step, steps_per_epoch=state.steps_per_epoch)
        group["lr"] = rate * group.get("lr_scale", 1.0)  # checkpoints of version 0.2.0 have none
    counts: Tensor | None = None
    for n_taken, micro_batch in enumerate(micro_batches, start=1):
        is_last = n_taken == config.accumulate
        loss, own_counts = _forward(config, state, micro_batch)
        with distributed.gradients_shared(state.network, is_last):
            state.scaler.scale(loss / config.accumulate).backward()
        counts = own_counts if counts is None else counts + own_counts
    if config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.ema:
        state.ema.update(state.model, step=step)
    assert counts is not None
    return counts


def _forward(config: Config, state: State, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Augment images, run the network, and return the loss with the batch's counts."""
    inputs, targets, known, draws = micro_batch
    if not state.map_shape:
        images = transforms.resize(inputs, transforms.side_px(config, epoch=state.progress.epoch))
        inputs = transforms.augment(images, draws, config, state.model.normalize)
        inputs, targets, known = transforms.mix(inputs, targets, known, draws, config)
    with _autocast(state):
        logits = state.network(inputs.contiguous(memory_format=torch.channels_last))
    loss = state.criterion(logits.float(), targets, known)
    counts = step_counts(loss.detach(), logits.detach().float(), targets, config.threshold, known)
    return loss, counts
