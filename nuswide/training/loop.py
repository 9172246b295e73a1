"""The training loop.

Owns fit() and the order of steps, evaluations and checkpoints. Knows no file format, plot or model
registry: metrics go to the run, and the state to the writer.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.core.allocator import freed_memory_kept
from nuswide.core.signals import Interrupted, StopSignals
from nuswide.data.dataset import Dataset
from nuswide.data.label_stats import TrainLabels
from nuswide.data.loader import create_loader, pin_memory, to_device
from nuswide.data.sampling import create_sampling, draw_rows, epoch_order
from nuswide.data.transforms import draw, side_px
from nuswide.evaluation.evaluate import Evaluation, predict, summary_line, torch_score
from nuswide.models.networks import TaggerNet
from nuswide.models.weights import StateDict
from nuswide.tracking.run import Run
from nuswide.training.checkpoint import CheckpointWriter, Diverged, snapshot
from nuswide.training.step import (
    Best,
    MicroBatch,
    Progress,
    State,
    choose_device,
    create_state,
    prepare_epoch,
    train_step,
)
from nuswide.training.step_metrics import StepRecord

# Called with the epoch, from 0, and its mAP on val, once it is saved; may raise to end training.
AfterEpoch = Callable[[int, float], None]


def global_batch_size(config: Config) -> int:
    """Return the images of one optimizer step, over all processes."""
    return config.batch_size * config.accumulate * distributed.world_size()


def is_complete(config: Config, progress: Progress) -> bool:
    """Whether training has taken all its epochs, or `patience_epochs` ends it early."""
    is_early = 0 < config.patience_epochs <= progress.stale_epochs
    return is_early or progress.epoch >= config.epochs


def fit(
    config: Config,
    model: TaggerNet,
    data: Dataset,
    run: Run,
    writer: CheckpointWriter,
    resumed: dict[str, Any] | None = None,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Best, State]:
    """Train, evaluate after each epoch, and return the chosen weights and the last state.

    resumed: the checkpoint to continue from. Raises Interrupted on SIGINT and SIGTERM, after the
    writer has taken the state.
    """
    device = choose_device(config.device)
    steps_per_epoch = len(data.manifest.indices("train")) // global_batch_size(config)
    state = create_state(
        config, model, device, steps_per_epoch=steps_per_epoch,
        train=TrainLabels.of(data.manifest), map_shape=data.map_shape,
    )  # fmt: skip
    if resumed:
        state.load_state_dict(resumed)
    allocator = freed_memory_kept() if device.type == "cpu" else nullcontext()
    with StopSignals() as stop, allocator:
        loop = _Loop(config, state, data, run, writer, stop)
        try:
            # All processes stop together, even if their metrics differ in the last bit.
            while not distributed.broadcast(is_complete(config, state.progress)):
                loop.train_one_epoch()
                value = loop.end_epoch()
                if after_epoch:
                    after_epoch(state.progress.epoch - 1, value)
        except Interrupted:
            loop.checkpoint(is_last=True)
            raise
    if state.progress.epoch < config.epochs:
        distributed.say("no better mAP on val within patience_epochs: training stops")
    if state.best is None:
        state.best = Best(_copy_weights(state.evaluated), state.progress.steps, float("nan"))
    return state.best, state


class _Loop:
    """The epochs of training.

    The progress is updated right after each step and evaluation, so that the state is consistent
    wherever the loop is left.
    """

    def __init__(
        self,
        config: Config,
        state: State,
        data: Dataset,
        run: Run,
        writer: CheckpointWriter,
        stop: StopSignals,
    ) -> None:
        self.config, self.state, self.data = config, state, data
        self.run, self.writer, self.stop = run, writer, stop
        self.train = data.manifest.indices("train")
        self.sample = create_sampling(config, TrainLabels.of(data.manifest))
        self.loader = create_loader(data, self.train, state.device, config.feed)
        self.targets = to_device(data.manifest.targets, state.device)
        known = data.manifest.known
        self.known = None if known is None else to_device(known, state.device)
        self.saved_at = self.sent_at = self.clock = time.perf_counter()
        self.record = self._new_record()

    def train_one_epoch(self) -> None:
        """Take the remaining steps of this epoch.

        Evaluates on test every `test_freq` steps and saves every `checkpoint_minutes`.
        """
        progress = self.state.progress
        prepare_epoch(self.config, self.state)
        self.record = self._new_record()
        self.clock = time.perf_counter()
        micro_batches = self._micro_batches()
        left = range(progress.step_in_epoch, self.state.steps_per_epoch)
        for _ in tqdm(
            left, f"epoch {progress.epoch}", self.state.steps_per_epoch, unit="step", leave=False,
            initial=progress.step_in_epoch, disable=None if distributed.is_main() else True,
        ):  # fmt: skip
            self._test_if_due()
            self.stop.check(progress.steps)
            step = islice(micro_batches, self.config.accumulate)
            self.record.add(train_step(self.config, self.state, step))
            progress.steps += 1
            progress.step_in_epoch += 1
            if time.perf_counter() - self.saved_at > 60 * self.config.checkpoint_minutes:
                self.checkpoint()
        self._test_if_due()

    def end_epoch(self) -> float:
        """Evaluate on val and save; return the mAP, NaN without val."""
        progress, value = self.state.progress, float("nan")
        with self._outside_training():
            loss = self.record.loss_sum / max(1, self.state.steps_per_epoch)
            side = side_px(self.config, epoch=progress.epoch)
            at = f"  at {side} px" if self.config.start_size_px else ""
            self._say("train", f"loss {loss:.3f}{at}", progress.steps)
            if len(self.data.manifest.indices("val")):
                value = self._evaluate("val", progress.steps)
            best = self.state.best
            is_new = best is None or best.steps == progress.steps
            progress.stale_epochs = 0 if is_new else progress.stale_epochs + 1
        progress.epoch += 1
        progress.step_in_epoch, progress.loss_sum = 0, 0.0
        self.record = self._new_record()  # else the checkpoint would contain the old one's sum
        self.checkpoint()
        return value

    def checkpoint(self, *, is_last: bool = False) -> None:
        """Pass a copy of the state to the writer, with the end of the metrics that it covers."""
        config = self.config
        with self._outside_training():
            self.saved_at = time.perf_counter()
            if not distributed.is_main():
                return
            mark = self.run.mark()
            state = {
                "config": asdict(config),
                "digest": self.data.manifest.digest,
                "world_size": distributed.world_size(),
                "threshold": config.threshold,
                "mark": mark,
                **snapshot(self.state.state_dict()),
            }
            self.writer.save(state, then=lambda: self._commit(mark, is_last=is_last))

    def _commit(self, mark: int, *, is_last: bool) -> None:
        """Commit what a saved checkpoint covers, and upload the checkpoint if that is due.

        Called in the writer's thread, so that a checkpoint which is never saved, because a newer
        one replaces it in the queue, does not count as uploaded.
        """
        is_due = time.perf_counter() - self.sent_at > 60 * self.config.upload_minutes
        if is_last or is_due:
            self.sent_at = time.perf_counter()
        self.run.commit(mark, self.writer.path if is_last or is_due else None)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        """Yield this process's part of the rest of this epoch, on the device."""
        progress, device = self.state.progress, self.state.device
        steps = self._order(progress.epoch)
        left = slice(progress.step_in_epoch, None)
        batches = self._own_parts(steps[left])
        rows = self._own_parts(draw_rows(steps, len(self.data))[left])
        drawn = draw(self.config, n_images=len(self.data), epoch=progress.epoch)
        loaded = self.loader.batches(batches)
        for batch, images, draws in zip(
            batches, loaded, pin_memory(drawn[rows], device), strict=True
        ):
            indices = to_device(batch, device)
            known = None if self.known is None else self.known[indices]
            yield images, self.targets[indices], known, draws

    def _order(self, epoch: int) -> NDArray[np.int64]:
        size, seed = global_batch_size(self.config), self.config.seed
        return epoch_order(self.train, self.sample, batch_size=size, seed=seed, epoch=epoch)

    def _own_parts(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of steps (M, global_batch_size): (M * accumulate, batch_size).

        It is contiguous in each step, so that mixing pairs the same images as in one process.
        """
        accumulate, size = self.config.accumulate, self.config.batch_size
        parts = steps.reshape(len(steps), distributed.world_size(), accumulate, size)
        return parts[:, distributed.rank()].reshape(-1, size)

    def _test_if_due(self) -> None:
        """Evaluate on test after the first step, and every `test_freq` steps from then on."""
        progress, every = self.state.progress, self.config.test_freq
        is_due = every and progress.steps % every == 1 % every
        if is_due and progress.tested != progress.steps:
            with self._outside_training():
                self._evaluate("test", progress.steps - 1)
            progress.tested = progress.steps

    def _evaluate(self, split: str, step: int) -> float:
        """Evaluate on a split and keep the weights if they are the best so far; return the mAP."""
        state = self.state
        distributed.share_buffers(state.model)
        score = torch_score(state.evaluated, state.device, state.dtype)

        def score_unless_stopped(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.stop.check_own()
            return score(images)

        part = self.data.of(split)
        scores = predict(score_unless_stopped, part)
        if np.isnan(scores).any():
            raise Diverged(
                f"the scores of {split} are no longer numbers after step {state.progress.steps}; "
                "start again with a lower lr"
            )
        evaluation = Evaluation(split, part.manifest, scores, self.config.threshold)
        self.run.log_metrics(evaluation.curves, step=step)
        value = evaluation.curves[f"{split}/map"]
        is_best = split == self.config.select_on and _is_better(value, state.best)
        self._say(split, summary_line(evaluation.curves, split) + "  best so far" * is_best, step)
        if is_best:
            state.best = Best(_copy_weights(state.evaluated), state.progress.steps, value)
            evaluation.record_pictures(self.run, part, step=step)
        return value

    def _say(self, split: str, text: str, step: int) -> None:
        epoch = self.state.progress.epoch
        distributed.say(f"epoch {epoch:3d}  step {step:5d}  {split:5s}  {text}")

    @contextmanager
    def _outside_training(self) -> Iterator[None]:
        """Do what is not training: with all steps' metrics flushed, and not counted in its time."""
        progress = self.state.progress
        self.record.flush()
        progress.loss_sum = self.record.loss_sum
        progress.train_s += time.perf_counter() - self.clock
        try:
            yield
        finally:
            self.clock = time.perf_counter()

    def _new_record(self) -> StepRecord:
        progress = self.state.progress
        return StepRecord(self.run, progress.steps, progress.loss_sum, self._explain)

    def _explain(self, step: int, loss: float) -> str:
        """Return what to do about a loss that is not finite."""
        epoch, step_in_epoch = divmod(step, self.state.steps_per_epoch)
        rows = self._order(epoch)[step_in_epoch]
        files = ", ".join(self.data.manifest.names[row] for row in rows)
        return (
            f"the loss became {loss} at step {step}, on {files}; give a lower lr or correct "
            f"the data, and start again; {self.writer.path} holds the state before it"
        )


def _is_better(value: float, best: Best | None) -> bool:
    """Whether an mAP is the best so far. NaN, of a split without a positive, is never."""
    return not math.isnan(value) and (best is None or not value <= best.map)


def _copy_weights(model: TaggerNet) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
