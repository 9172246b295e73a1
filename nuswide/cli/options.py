"""Options and error handling that several commands share.

Imports mlflow when a command runs, so that `--help` does not.
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

Command = Callable[..., None]

CHAMPION = "models:/nuswide-tagger@champion"
PATH = click.Path(path_type=Path)

option = functools.partial(click.option, show_default=True)
# A switch that also takes a value, so that `-P strict=true` sets it, too.
switch = functools.partial(option, type=bool, is_flag=False, flag_value=True, default=False)

model_option = option("--model", default=CHAMPION, help="models:/NAME@ALIAS or /VERSION.")
data_option = option("--data", default="sample", help="Folder, or `sample`.")
cache_option = option(
    "--cache", type=PATH, default=Config.cache, help="Folder of the cache of decoded images."
)


def one_line_errors(command: Command) -> Command:
    """Report MLflow's exceptions, which are the user's or the server's errors, in one line.

    SIGTERM becomes an interrupt, so that a run that it stops ends as KILLED.
    """

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        from nuswide.tracking.errors import mlflow_errors_in_one_line

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with mlflow_errors_in_one_line():
            command(**options)

    return wrapper


def config_options(*left_out: str) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each config field, under the field's own name."""

    def add_options(command: Command) -> Command:
        for f in reversed([f for f in fields(Config) if f.name not in left_out]):
            text = f"{f.metadata['help']}  [{f.default}]"
            command = click.option(f"--{f.name}", default=None, metavar="VALUE", help=text)(command)
        return command

    return add_options


def settings_options(command: Command) -> Command:
    """Add an option for each setting of the server, under the field's own name."""
    for f in reversed(fields(Settings)):
        text = f.metadata["help"]
        command = option(f"--{f.name}", default=f.default, type=f.type, help=text)(command)
    return command


def given_of(options: Mapping[str, str | None]) -> dict[str, str]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import what an extra installs; raises click.ClickException naming the extra otherwise."""
    try:
        yield
    except ImportError as error:
        raise click.ClickException(
            f"this needs {error.name}; pip install 'nuswide[{name}]' brings it"
        ) from error
