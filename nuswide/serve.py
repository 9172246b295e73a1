"""The server of a registered model.

Owns how it is started. Needs no torch.

    serve_model("models:/nuswide-tagger@champion", "127.0.0.1", 5001)
"""

import os
import socket
import sys

import click
import mlflow

from nuswide.registry import find_version


def serve_model(uri: str, host: str, port: int) -> None:
    """Become `mlflow models serve` for a registered model, once it and the port are there."""
    find_version(uri)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {host}:{port} ({error.strerror}); give another port"
            ) from error
    command = ["-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    where = ["-h", host, "-p", str(port)]
    # `mlflow run` waits for the server's end, but is often killed with it: end its run beforehand.
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        mlflow.MlflowClient().set_terminated(run_id)
    os.execv(sys.executable, [sys.executable, *command, *where])
