"""MLflow's errors as errors of the command line.

Owns their conversion. Handles no error of other libraries.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import click
from mlflow.exceptions import MlflowException


@contextmanager
def mlflow_errors_in_one_line() -> Iterator[None]:
    """Turn MLflow's exceptions into click.ClickException, with their first line."""
    try:
        yield
    except MlflowException as error:
        raise click.ClickException(f"MLflow: {str(error).splitlines()[0]}") from error
