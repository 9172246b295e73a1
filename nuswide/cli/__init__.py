"""The command line: each command parses its options, loads the config and calls one function.

Owns options and exit codes: 1 for an error, 2 for a usage error. Commands import what they run when
they run it, so that `--help` needs neither torch nor mlflow.
"""

import click

from nuswide import __version__
from nuswide.cli import data, deployment, evaluation, training


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nuswide")
def main() -> None:
    """Train, evaluate, compare and serve image taggers, recorded in MLflow."""


for _command in (
    training.train, training.folds, training.sweep, training.upload, training.reproduce,
    evaluation.evaluate, evaluation.compare, evaluation.promote,
    deployment.quantize, deployment.serve, deployment.tag,
    data.prepare, data.audit, data.cache, data.download, data.sample,
):  # fmt: skip
    main.add_command(_command)
