"""The commands that train, and those on training runs: train, folds, sweep, upload, reproduce."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from nuswide.cli.options import PATH, config_options, extra, given_of, one_line_errors, option
from nuswide.config import Config, load_config

_FOLDS = 5  # by default


@click.command()
@option("--experiment", type=PATH, help="A file of experiments/.")
@config_options()
@one_line_errors
def train(experiment: Path | None, **overrides: str | None) -> None:
    """Train a tagger, record the run and register the model."""
    given = given_of(overrides)
    config = load_config(experiment, given)
    from nuswide.training.pipeline import train_and_register

    train_and_register(config, name=_title(experiment, given))


def _title(experiment: Path | None, given: Mapping[str, str]) -> str:
    """Return the name of a run: its experiment, and what was given on top of it."""
    changes = (f"{key}={Path(value).name}" for key, value in given.items())
    return " ".join([experiment.stem if experiment else "train", *changes])


@click.command()
@option("--experiment", type=PATH, help="A file of experiments/.")
@config_options("fold", "resume")
@one_line_errors
def folds(experiment: Path | None, **overrides: str | None) -> None:
    """Train once for each of --folds N, 5 by default, and record the mean metrics.

    The folds divide the images of train and val; each is val in a run of its own. Run the same
    command again to continue folds that were stopped. No model is registered.
    """
    given = given_of(overrides)
    config = load_config(experiment, given, {"folds": _FOLDS})
    from nuswide.training.folds import train_folds

    config = replace(config, folds=config.folds or _FOLDS)  # a recorded config.yaml has 0
    title = _title(experiment, {k: v for k, v in given.items() if k not in ("data", "folds")})
    data = Path(config.data).resolve().name
    train_folds(config, name=f"{config.folds} folds of {data}: {title}")


@click.command()
@click.argument("file", type=PATH)
@option("--trials", type=click.IntRange(1), help="Number of trials.  [the file's]")
@option(
    "--storage",
    metavar="URL",
    help="sqlite:///FILE, or postgresql://USER@HOST/DATABASE for workers on several machines.  "
    "[a file beside the tracking store]",
)
@option("--name", metavar="STUDY", help="Name of the study.  [the file's]")
@config_options("resume")
@one_line_errors
def sweep(
    file: Path, trials: int | None, storage: str | None, name: str | None, **overrides: str | None
) -> None:
    """Search the fields that FILE, one of experiments/sweeps/, names.

    Each trial is a run. Run the same command again to add a worker, or to continue a sweep that was
    stopped. Fields given as options take precedence over the file's experiment.
    """
    with extra("sweep"):
        from nuswide.training.sweep.plan import read_plan
        from nuswide.training.sweep.worker import run_sweep

    given = given_of(overrides)
    run_sweep(read_plan(file, given, trials=trials), name=name or file.stem, storage=storage)


@click.command()
@click.argument("run_id")
@option("--checkpoints", type=PATH, default=Config.checkpoints, help="Folder of checkpoints.")
@one_line_errors
def upload(run_id: str, checkpoints: Path) -> None:
    """Send the part of a run that the tracking server did not receive."""
    from nuswide.training.pipeline import upload_run

    upload_run(run_id, checkpoints)


@click.command()
@click.argument("run_id")
@option("--data", help="Folder of the data, if it has moved.")
@option("--checkpoints", help="Folder of checkpoints.")
@option("--cache", help="Folder of the cache of decoded images.")
@one_line_errors
def reproduce(run_id: str, **changes: str | None) -> None:
    """Repeat a recorded run and report the differences."""
    from nuswide.training.reproduce import reproduce

    reproduce(run_id, given_of(changes))
