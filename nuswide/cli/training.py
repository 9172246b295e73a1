"""The commands that train, and those around a run: train, sweep, upload, reproduce."""

from pathlib import Path

import click

from nuswide.cli.options import config_options, extra, given_of, one_line_errors
from nuswide.config import Config, load_config


@click.command()
@click.option("--experiment", type=click.Path(path_type=Path), help="A file of experiments/.")
@config_options
@one_line_errors
def train(experiment: Path | None, **overrides: str | None) -> None:
    """Train a tagger, record the run, and register the model."""
    given = given_of(overrides)
    config = load_config(experiment, given)
    from nuswide.training.pipeline import train_and_register

    changes = (f"{key}={Path(value).name}" for key, value in given.items())
    train_and_register(
        config, name=" ".join([experiment.stem if experiment else "train", *changes])
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(1), help="How many.  [the file's]")
@click.option(
    "--storage",
    metavar="URL",
    help="sqlite:///FILE, or postgresql://USER@HOST/DATABASE for workers on several machines.  "
    "[a file beside the tracking store]",
)
@click.option("--name", metavar="STUDY", help="Of the study.  [the file's]")
@config_options
@one_line_errors
def sweep(
    file: Path, trials: int | None, storage: str | None, name: str | None, **overrides: str | None
) -> None:
    """Search what a FILE of experiments/sweeps/ names, by trials that are runs of their own.

    The same command, given once more, is a second worker, or goes on with what was stopped. Fields
    that are given win over the file's experiment.
    """
    with extra("sweep"):
        from nuswide.training.sweep.plan import read_plan
        from nuswide.training.sweep.worker import run_sweep

    given = given_of(overrides)
    run_sweep(read_plan(file, given, trials=trials), name=name or file.stem, storage=storage)


@click.command()
@click.argument("run_id")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Config.checkpoints,
    show_default=True,
    help="Folder for the state of runs.",
)
@one_line_errors
def upload(run_id: str, checkpoints: Path) -> None:
    """Send what the tracking server did not take of a run, once it answers again."""
    from nuswide.training.pipeline import upload_run

    upload_run(run_id, checkpoints)


@click.command()
@click.argument("run_id")
@click.option("--data", help="Where the data is now, if elsewhere than it was.")
@click.option("--checkpoints", help="Folder for the state of runs.")
@click.option("--cache", help="Folder for decoded pictures.")
@one_line_errors
def reproduce(run_id: str, **changes: str | None) -> None:
    """Train a recorded run again, and say what is as it was, and how far its figures differ."""
    from nuswide.training.reproduce import reproduce

    reproduce(run_id, given_of(changes))
