"""Claim: an outage of the tracking server neither slows training nor loses or doubles a point.

    python benchmarks/outage.py [SECONDS] [EPOCHS]

Trains a small network three times under a real `mlflow server`: undisturbed; with the server gone
for SECONDS (180) in mid-training; and with a server that only comes back after training, when
`nuswide upload` sends the rest. Compares the metric histories, and the seconds of training.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--data data --backbone resnet18 --image_size_px 64 --batch_size 16 --lr 1e-3 "
    "--registered_model none"
).split()
TIMED = {"train/images_per_s", "train/seconds", "run/seconds"}


class Server:
    """An `mlflow server` process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
             "--artifacts-destination", str(self.folder / "files")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)

    def stop(self) -> None:
        """Kill it and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def nuswide(folder: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a command of the package."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.Popen(
        [sys.executable, "-m", "nuswide", *arguments], cwd=folder, text=True,
        env=own | {"MLFLOW_TRACKING_URI": url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_epoch(process: subprocess.Popen[str]) -> None:
    """Wait until a training process says that an epoch is over."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch   1"):
            return
    raise SystemExit("training ended early")


def outcome(run_id: str) -> tuple[float, dict[str, list[tuple[int, float]]]]:
    """A run's seconds of training, and its metric histories."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED", run.info.status
    histories = {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
        for key in set(run.data.metrics) - TIMED
    }
    return run.data.metrics["train/seconds"], histories


def newest_run(folder: Path) -> str:
    """The ID of the run whose state was begun last."""
    places = folder.glob("data/checkpoints/*/about.json")
    return max(places, key=lambda path: path.stat().st_mtime).parent.name


def main() -> None:
    """Train three times, and compare."""
    outage_s = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = Server(folder)
        server.start()
        mlflow.set_tracking_uri(server.url)
        nuswide(folder, server.url, "sample", "data", "--images", "400").wait()
        # An epoch takes a second or two on two cores: training has to outlast the outage.
        epochs = sys.argv[2] if len(sys.argv) > 2 else str(max(10, round(1.5 * outage_s)))
        train = ["train", *OPTIONS, "--epochs", epochs]

        process = nuswide(folder, server.url, *train)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        seconds, histories = outcome(newest_run(folder))
        points = sum(map(len, histories.values()))
        print(f"undisturbed: {seconds:.0f} s of training, {points} points", flush=True)

        process = nuswide(folder, server.url, *train)
        wait_for_epoch(process)
        server.stop()
        time.sleep(outage_s)
        still = process.poll() is None
        server.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        report(f"server away for {outage_s:.0f} s in mid-training", folder, seconds, histories)
        print(f"  training was {'still' if still else 'no longer'} going on when it came back")

        process = nuswide(folder, server.url, *train)
        wait_for_epoch(process)
        server.stop()
        output, _ = process.communicate()
        print(f"server away for good: exit code {process.returncode}: {output.splitlines()[-1]}")
        server.start()
        process = nuswide(folder, server.url, "upload", newest_run(folder))
        output, _ = process.communicate()
        assert process.returncode == 0, output
        report("  after nuswide upload", folder, seconds, histories)
        server.stop()


def report(
    what: str, folder: Path, seconds: float, histories: dict[str, list[tuple[int, float]]]
) -> None:
    """Print how a run compares with the undisturbed one."""
    own_seconds, own = outcome(newest_run(folder))
    differing = [key for key in own.keys() | histories.keys() if own.get(key) != histories.get(key)]
    same = "histories DIFFER: " + ", ".join(differing) if differing else "histories equal"
    print(f"{what}: {same}; training took {own_seconds / seconds:.2f} times as long", flush=True)


if __name__ == "__main__":
    main()
