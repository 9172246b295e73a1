"""The training loop.

Owns fit() and train_one_epoch(). Knows no file format, plot or model registry; what it measures
goes to the run that it is given.

    best, state = fit(config, model, data, run)
    model.load_state_dict(best.weights)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nuswide.config import Config, pick
from nuswide.data import Dataset, epoch_order
from nuswide.evaluate import Evaluation, headline, predict, torch_score
from nuswide.losses import LOSSES, Criterion
from nuswide.metrics import NINE
from nuswide.models import StateDict, TaggerNet
from nuswide.tracking import Run
from nuswide.transforms import affine, draw_affine, normalize

_BLOCK = 100  # steps whose figures leave the device together


@dataclass(frozen=True)
class Best:
    """The weights that `select_on` chose, after how many steps, and the mAP that chose them."""

    weights: StateDict
    steps: int
    map: float


@dataclass
class State:
    """What changes while training. steps: optimizer steps taken. train_s: seconds of them alone."""

    model: TaggerNet
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    device: torch.device
    steps: int = 0
    epoch: int = 0
    train_s: float = 0.0
    best: Best | None = None


def choose_device(name: str) -> torch.device:
    """Turn auto, cpu or cuda into a device; raises click.ClickException for a missing GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("device=cuda, but torch finds no GPU; give device=auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fit(config: Config, model: TaggerNet, data: Dataset, run: Run) -> tuple[Best, State]:
    """Train, evaluate after each epoch, and give the chosen weights and the state at the end."""
    device = choose_device(config.device)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    state = State(model, optimizer, pick(LOSSES, "loss", config.loss), device)

    def evaluate(split: str) -> None:
        _evaluate_and_keep_best(config, state, data.of(split), run, split)

    for state.epoch in range(config.epochs):
        loss = train_one_epoch(config, state, data, run, evaluate)
        click.echo(f"epoch {state.epoch:3d}  step {state.steps:5d}  train  loss {loss:.3f}")
        if len(data.manifest.indices("val")):
            evaluate("val")
        run.flush()
    if state.best is None:
        state.best = Best(_copy_weights(model), state.steps, float("nan"))
    return state.best, state


def train_one_epoch(
    config: Config, state: State, data: Dataset, run: Run, evaluate: Callable[[str], None]
) -> float:
    """Take one pass over train, evaluating on test every `test_freq` steps; gives the mean loss."""
    state.model.train()
    manifest, train = data.manifest, data.manifest.indices("train")
    theta = draw_affine(config, n_images=len(manifest), epoch=state.epoch)
    batches = epoch_order(train, batch_size=config.batch_size, seed=config.seed, epoch=state.epoch)
    record = _StepRecord(run, first_step=state.steps)
    name, n_batches = f"epoch {state.epoch}", len(train) // config.batch_size
    for batch in tqdm(batches, name, n_batches, unit="step", disable=None, leave=False):
        start = time.perf_counter()
        inputs, targets, warp = (
            torch.from_numpy(array).to(state.device)
            for array in (data.gather(batch), manifest.targets[batch], theta[batch])
        )
        known = None
        if manifest.known is not None:
            known = torch.from_numpy(manifest.known[batch]).to(state.device)
        inputs = affine(normalize(inputs), warp).contiguous(memory_format=torch.channels_last)
        logits = state.model(inputs)
        loss = state.criterion(logits, targets, known)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        figures = step_figures(logits.detach(), targets, config.threshold, known)
        record.add(loss.detach(), figures)
        state.train_s += time.perf_counter() - start
        if config.test_freq and state.steps % config.test_freq == 0:
            evaluate("test")
        state.steps += 1
    return record.close()


def step_figures(
    logits: Tensor, targets: Tensor, threshold: float, known: Tensor | None = None
) -> Tensor:
    """The nine figures of a batch in the order of metrics.NINE, left on the device; (9,).

    logits, targets, known: (N, C). As metrics.precision_recall_f1 defines them.
    """
    predicted, true = (logits.sigmoid() >= threshold).float(), targets.float()
    if known is not None:
        predicted = predicted * known
    hits = predicted * true
    figures = []
    for dims in ((0, 1), (0,), (1,)):  # micro, macro, samples
        tp, p, t = hits.sum(dims), predicted.sum(dims), true.sum(dims)
        # A zero denominator goes with a zero numerator, so that clamping gives 0.
        figures += [tp / p.clamp(min=1), tp / t.clamp(min=1), 2 * tp / (p + t).clamp(min=1)]
    return torch.stack([figure.mean() for figure in figures])


class _StepRecord:
    """Collects each step's loss and figures on the device and hands them on in blocks."""

    def __init__(self, run: Run, first_step: int) -> None:
        self.run = run
        self.step = first_step
        self.waiting: list[Tensor] = []
        self.losses: list[float] = []

    def add(self, loss: Tensor, figures: Tensor) -> None:
        self.waiting.append(torch.cat([loss[None], figures]))
        if len(self.waiting) == _BLOCK:
            self._hand_on()

    def close(self) -> float:
        """Hand on the rest; gives the mean loss of all."""
        self._hand_on()
        return float(np.mean(self.losses))

    def _hand_on(self) -> None:
        if not self.waiting:
            return
        for loss, *figures in torch.stack(self.waiting).cpu().tolist():
            if not np.isfinite(loss):
                raise click.ClickException(
                    f"the loss became {loss} at step {self.step}; give a lower lr"
                )
            values = {"loss": loss, **dict(zip(NINE, figures, strict=True))}
            self.run.log_metrics({f"train/{k}": v for k, v in values.items()}, step=self.step)
            self.losses.append(loss)
            self.step += 1
        self.waiting.clear()


def _evaluate_and_keep_best(
    config: Config, state: State, data: Dataset, run: Run, split: str
) -> None:
    scores = predict(torch_score(state.model, state.device), data)
    evaluation = Evaluation(split, data, scores, config.threshold)
    run.log_metrics(evaluation.prefixed, step=state.steps)
    is_best = split == config.select_on and (
        state.best is None or evaluation.figures["map"] > state.best.map
    )
    note = "  best so far" if is_best else ""
    click.echo(
        f"epoch {state.epoch:3d}  step {state.steps:5d}  {split:5s}  "
        f"{headline(evaluation.figures)}{note}"
    )
    if is_best:
        state.best = Best(_copy_weights(state.model), state.steps, evaluation.figures["map"])
        evaluation.record_pictures(run, step=state.steps)


def _copy_weights(model: TaggerNet) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
