"""What several commands share: options, and the way of errors to one line.

Imports mlflow late, so that `--help` is instant.
"""

import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from nuswide.config import Config
from nuswide.deployment.serve.settings import Settings

CHAMPION = "models:/nuswide-tagger@champion"


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn MLflow's exceptions, which are the user's or the server's, into one-line errors.

    A SIGTERM becomes an interrupt, so that a run that is stopped so ends as KILLED.
    """

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        from mlflow.exceptions import MlflowException

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            command(**options)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise click.ClickException(f"MLflow: {reason}") from error

    return wrapper


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each config field, under the field's own name."""
    for f in reversed(fields(Config)):
        text = f"{f.metadata['help']}  [{f.default}]"
        command = click.option(f"--{f.name}", default=None, metavar="VALUE", help=text)(command)
    return command


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit of the server, under the field's own name."""
    for f in reversed(fields(Settings)):
        option = click.option(
            f"--{f.name}",
            default=f.default,
            type=f.type,
            show_default=True,
            help=f.metadata["help"],
        )
        command = option(command)
    return command


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Config.cache,
    show_default=True,
    help="Folder for decoded pictures.",
)

model_option = click.option(
    "--model", default=CHAMPION, show_default=True, help="models:/NAME@ALIAS or /VERSION."
)


def given_of(options: Mapping[str, str | None]) -> dict[str, str]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import what an extra brings; raises click.ClickException naming it if it is not there."""
    try:
        yield
    except ImportError as error:
        raise click.ClickException(
            f"this needs {error.name}; pip install 'nuswide[{name}]' brings it"
        ) from error
