"""Training, evaluating and serving without what Linux alone has, as on macOS."""

import sys
from pathlib import Path

import pytest
from conftest import TINY, Workspace

pytestmark = pytest.mark.slow

WORK = """
import asyncio, builtins, os, sys
from pathlib import Path

for name in ("posix_fallocate", "sched_getaffinity", "fdatasync"):
    delattr(os, name)
import_module = builtins.__import__


def without_fcntl(name, globals=None, *rest, **named):  # the standard library needs it
    package = ((globals or {}).get("__name__") or "").partition(".")[0]
    if name == "fcntl" and package in ("nuswide", "filelock"):
        raise ImportError(name)
    return import_module(name, globals, *rest, **named)


builtins.__import__ = without_fcntl

import filelock, mlflow
from nuswide.config import load_config
from nuswide.core import allocator
from nuswide.deployment.serve.server import WorkerConfig
from nuswide.deployment.serve.settings import Settings
from nuswide.evaluation.commands import evaluate_registered
from nuswide.training.pipeline import train_and_register

assert not filelock.unix_has_fcntl
allocator.platform.libc_ver = lambda: ("", "")
data, uri = sys.argv[1], "models:/tiny/1"
config = load_config(None, dict(pair.split("=") for pair in sys.argv[2:]) | {"data": data})
assert train_and_register(config, name="tiny")
evaluate_registered(uri, data, "test", Path("cache"))
folder = Path(mlflow.artifacts.download_artifacts(uri))
app = WorkerConfig(folder, "tiny", "1", Settings(), None).app()
photo = next((Path(data) / "images").iterdir()).read_bytes()


async def ask():
    sent = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/invocations", "raw_path": b"/invocations", "query_string": b"",
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5001),
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/jpeg"),
                    (b"content-length", str(len(photo)).encode())],
    }

    async def receive():
        return {"type": "http.request", "body": photo, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    print(sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:]).decode())


asyncio.run(ask())
"""


def test_a_tagger_is_trained_evaluated_and_served_without_linuxs_own_functions(
    tmp_path: Path, tiny_data: Path
) -> None:
    options = TINY | {"epochs": "1", "device": "cpu", "registered_model": "tiny"}
    fields = [f"{name}={value}" for name, value in options.items()]
    done = Workspace(tmp_path).run(sys.executable, "-c", WORK, str(tiny_data), *fields)
    status, _, body = done.stdout.splitlines()[-1].partition(" ")
    assert status == "200" and '"predictions"' in body
