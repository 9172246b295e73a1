"""A worker of a sweep, which runs one trial after the other until the study has all of them.

Owns the order of a worker's steps. The next step follows from the study alone, which one worker at
a time reads and changes, so that a worker may die at any point. Never evaluates test.
"""

import gc
import io
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import click
import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.core.wording import counted
from nuswide.data.dataset import load_manifest
from nuswide.tracking.relaunch import find_launcher, same_command, train_command
from nuswide.tracking.run import EndedEarly
from nuswide.tracking.store import open_store
from nuswide.tracking.sweep_run import SweepRun, default_storage
from nuswide.training import run_folder
from nuswide.training.checkpoint import Diverged
from nuswide.training.pipeline import train_and_register
from nuswide.training.starting_point import unused_fractions
from nuswide.training.sweep.plan import Params, Plan
from nuswide.training.sweep.record import (
    VALUE,
    best_yaml,
    record_outcome,
    record_plan,
    record_progress,
)
from nuswide.training.sweep.store import StudyStorage
from nuswide.training.sweep.study import agree, create_pruner, queue_next, suggest, take_stock
from nuswide.training.sweep.trials import INDEX, Trial, best_of, read_trials, to_text


class TrialFailed(Exception):
    """A trial failed because of its params, not because of its worker: it is not retried."""


def run_sweep(plan: Plan, *, name: str, storage: str | None) -> None:
    """Work on the study `name` until all its trials are done.

    storage: sqlite:///FILE or postgresql://...; None for a file beside the tracking store. Raises
    click.ClickException, and KeyboardInterrupt when stopped; the same command continues the study.
    """
    if distributed.world_size() > 1:
        raise click.ClickException("a sweep's workers are started one by one, not by torchrun")
    _quieten()
    open_store()
    launcher = find_launcher()  # before its run is joined
    again = f"continue with\n  {same_command(launcher)}"
    store = StudyStorage(storage or default_storage(), name=name, heartbeat_s=plan.heartbeat_s)
    try:
        worker = Worker(plan, store, train_command(launcher, "best.yaml"))
        with worker.end_parent_on_failure(again):
            while not worker.conclude():
                if not worker.run_next():
                    worker.wait()
    except (StorageInternalError, SQLAlchemyError, UnboundLocalError) as error:
        # Optuna hides its storage's error behind the last of these.
        outage = error.__context__ if isinstance(error, UnboundLocalError) else error
        if not isinstance(outage, StorageInternalError | SQLAlchemyError):
            raise
        raise click.ClickException(
            f"the storage does not answer ({_reason(outage)}); {again}"
        ) from error


def _quieten() -> None:
    """Silence other libraries, so that a trial prints one line."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _reason(error: BaseException) -> str:
    """Return the first line of an error's cause, or of the error itself."""
    return str(error.__cause__ or error).splitlines()[0]


class Worker:
    """One process that runs trials of a study. study: Optuna's. parent: its run in MLflow."""

    def __init__(self, plan: Plan, store: StudyStorage, to_train: str) -> None:
        """Join the study, or create it. to_train: the command that trains the best experiment.

        Raises click.UsageError if it was begun with another plan or data.
        """
        self.plan, self.store, self._to_train = plan, store, to_train
        self._is_waiting = self._is_given_up = False
        with store.exclusive_lock():
            config = plan.config(plan.corner)
            manifest = load_manifest(config.data, skip_rejected=config.skip_rejected)
            self.study = store.open_study(create_pruner(plan))
            self.plan = agree(self.study, plan, manifest.full_digest)
            attrs = self.study.user_attrs
            self.parent = SweepRun.join(attrs["key"], attrs.get("run"), store.name)
            self.study.set_user_attr("run", self.parent.id)
            record_plan(self.parent, self.plan, str(store))
            self.parent.adopt_launcher("sweep worker", f"A worker of the sweep {self.parent.id}.")
            take_stock(self.study)
            n_done = len([trial for trial in read_trials(self.study) if trial.is_done])
        done = f"; {counted(n_done, 'is done', 'are done')}" if n_done else ""
        click.echo(
            f"sweep {store.name}: {counted(self.plan.trials, 'trial')} by {self.plan.sampler}, "
            f"pruner {self.plan.pruner}, in {store}{done}\n"
            f"run {self.parent.id}\n{self.parent.address}"
        )
        for line in unused_fractions(config, manifest):
            click.echo(line)

    @contextmanager
    def end_parent_on_failure(self, again: str) -> Iterator[None]:
        """End the parent run if this worker fails or is stopped and no other one is running."""
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            click.echo(f"\ninterrupted; {again}")
            raise
        except click.ClickException:
            click.echo(f"the trial is not complete; fix the cause, then {again}", err=True)
            raise
        finally:
            if status != "FINISHED":
                self._leave(status)

    def run_next(self) -> bool:
        """Run the next trial; return whether there was one."""
        with ExitStack() as lock:
            lock.enter_context(self.store.exclusive_lock())
            self.parent.set_status("RUNNING")
            take_stock(self.study)
            if (index := queue_next(self.study, self.plan)) is None:
                return False
            self._is_waiting = False
            self.store.expect_heartbeat()
            try:
                # Takes the trial that was queued; the objective releases the lock.
                self.study.optimize(
                    lambda trial: self._objective(trial, lock), n_trials=1, catch=(TrialFailed,)
                )
            except Exception:
                if not self._is_given_up:
                    raise
                click.echo(
                    f"trial {index + 1} is another worker's now, as this one sent no heartbeat"
                )
                return True
            finally:
                gc.collect()
        self._report_trial(index)
        return True

    def wait(self) -> None:
        """Wait for other workers; if one dies, this one takes its trial."""
        if not self._is_waiting:
            click.echo("waiting for the trials of other workers")
        self._is_waiting = True
        time.sleep(self.plan.heartbeat_s)

    def conclude(self) -> bool:
        """Return whether all trials are done; if so, end the parent run and print the result."""
        with self.store.exclusive_lock():
            self.plan = replace(self.plan, trials=self.study.user_attrs["trials"])
            trials = read_trials(self.study)
            if len([trial for trial in trials if trial.is_done]) < self.plan.trials:
                return False
            if self.parent.status != "FINISHED":
                record_progress(self.parent, self.plan, trials)
                record_outcome(self.parent, self.plan, trials, self.study, self._to_train)
                self.parent.end_abandoned_trials()
                self.parent.set_status("FINISHED")
        click.echo(f"\n{to_text(self.plan, trials)}\n")
        if best := best_of(trials):
            click.echo(
                f"{best_yaml(self.plan, best, trials, self.store.name, self._to_train)}\n"
                "Download it, train it, and register its model:\n"
                f"  mlflow artifacts download -r {self.parent.id} -a best.yaml -d .\n"
                f"  {self._to_train}"
            )
        click.echo(f"run {self.parent.id}\n{self.parent.address}")
        return True

    def _leave(self, status: str) -> None:
        """Record the progress, and end the parent run unless another worker is running a trial."""
        try:
            with self.store.exclusive_lock():
                trials = read_trials(self.study)
                if any(trial.state == "running" for trial in trials):
                    return
                record_progress(self.parent, self.plan, trials)
                record_outcome(self.parent, self.plan, trials, self.study, self._to_train)
                self.parent.end_abandoned_trials()
                self.parent.set_status(status)
        except Exception as error:  # must not hide the reason for leaving
            click.echo(f"the sweep's run was not ended: {_reason(error)}", err=True)
            with suppress(Exception):
                self.parent.set_status(status)

    def _objective(self, trial: optuna.Trial, lock: ExitStack) -> float:
        """Train a trial and return its mAP on val. lock: released once the trial has begun."""
        self._is_given_up = False
        params = {d.name: suggest(trial, d) for d in self.plan.search}
        config = replace(self.plan.config(params), registered_model="none", resume="none")
        run, config = self._run_for(trial, config, params)
        trial.set_user_attr("run", run)
        self.store.wait_for_heartbeat()
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        lock.close()
        value = self.parent.metric_of(run, VALUE)  # there if a worker died after training
        return self._train(trial, config, run) if value is None else value

    def _train(self, trial: optuna.Trial, config: Config, run: str) -> float:
        """Train in a run, and record the outcome in the run and in the study."""
        state = "failed"
        try:
            with redirect_stdout(io.StringIO()):
                train_and_register(
                    config, name="trial", run_id=run, is_trial=True,
                    after_epoch=lambda *so_far: _report(trial, config, *so_far),
                )  # fmt: skip
            state = "complete"
        except EndedEarly as error:
            state = "pruned"
            raise optuna.TrialPruned from error
        except (Diverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr("failed", str(error).splitlines()[0])
            raise TrialFailed from error
        except KeyboardInterrupt:
            state = "interrupted"
            trial.set_user_attr("stopped", True)
            raise
        finally:
            with suppress(StorageInternalError):  # must not hide the trial's own error
                now = self.study.get_trials(deepcopy=False)[trial.number].state
                self._is_given_up = now.is_finished()
            self.parent.end_trial(run, "given up" if self._is_given_up else state)
        value = self.parent.metric_of(run, VALUE)
        assert value is not None
        return value

    def _run_for(self, trial: optuna.Trial, config: Config, params: Params) -> tuple[str, Config]:
        """Return the trial's run: that of an earlier worker if its state is here, or a new one."""
        index, before = trial.user_attrs[INDEX], trial.user_attrs.get("run")
        if before and self.parent.metric_of(before, VALUE) is not None:
            return before, config
        if before and run_folder.is_resumable(Path(config.checkpoints) / before):
            for earlier in self.study.get_trials(states=[TrialState.FAIL]):
                if earlier.user_attrs.get("run") == before:
                    for epoch, value in earlier.intermediate_values.items():
                        trial.report(value, epoch)
            return before, replace(config, resume=before)
        if before:
            self.parent.end_trial(before, "given up")
        return self.parent.begin_trial(index + 1, params), config

    def _report_trial(self, index: int) -> None:
        """Record and print the outcome of a trial, and delete its checkpoints."""
        with self.store.exclusive_lock():
            trials = read_trials(self.study)
            record_progress(self.parent, self.plan, trials)
        trial, best = next(t for t in trials if t.index == index), best_of(trials)
        click.echo(_line(trial, best, self.plan))
        if trial.run and trial.is_done:  # MLflow has all that is kept of it
            folder = Path(self.plan.config(trial.params).checkpoints) / trial.run
            shutil.rmtree(folder, ignore_errors=True)


def _report(trial: optuna.Trial, config: Config, epoch: int, value: float) -> None:
    """Report an epoch's mAP to the study; raises EndedEarly if the trial is to be pruned."""
    if value != value:
        raise click.ClickException("no label of val has a positive, so mAP is undefined")
    trial.report(value, epoch)
    if epoch + 1 < config.epochs and trial.should_prune():
        raise EndedEarly


def _line(trial: Trial, best: Trial | None, plan: Plan) -> str:
    """Return a line on a finished trial."""
    value = "" if trial.value is None else f"{trial.value:.4f}"
    outcome = {"complete": f"val mAP {value}", "pruned": f"pruned at {value}"}
    params = " ".join(f"{name}={value}" for name, value in trial.params.items())
    so_far = f"best {best.value:.4f}, trial {best.index + 1}" if best else "none complete yet"
    said = outcome.get(trial.state, f"{trial.state}: {trial.reason}")
    return (
        f"trial {trial.index + 1:2d}/{plan.trials}  {said:18s}  {so_far:22s}  "
        f"{trial.seconds:5.0f} s  {params}"
    )
