"""The command line: parse, load the config, call one function.

Owns options and exit codes: 1 for what goes wrong, 2 for a command typed wrong. The modules beside
have the commands, and import the rest late, so that `--help` is instant.
"""

import click

from nuswide import __version__
from nuswide.cli import data, deployment, training


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nuswide")
def main() -> None:
    """Train, evaluate, compare and serve taggers of images, with MLflow as the record."""


for _command in (
    training.train, training.sweep, training.upload, training.reproduce,
    deployment.evaluate, deployment.compare, deployment.promote, deployment.quantize,
    deployment.serve, deployment.tag,
    data.prepare, data.audit, data.cache, data.download, data.sample,
):  # fmt: skip
    main.add_command(_command)
