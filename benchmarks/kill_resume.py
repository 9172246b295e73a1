"""Claim: a run killed at any moment and resumed ends as if nothing had happened.

    python benchmarks/kill_resume.py [KILLS]

Trains a small network once without a disturbance, then again and again, each time killed with
SIGKILL at a random moment of its life and resumed with `resume=auto`. Compares the final weights
bit for bit, and the metric histories value by value.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import torch
from safetensors.torch import load_file

OPTIONS = (
    "--data data --backbone resnet18 --image_size_px 32 --epochs 3 --batch_size 4 --lr 1e-3 "
    "--ema_epochs 1 --checkpoint_minutes 0.01 --registered_model none"
).split()
ROOT = Path(__file__).resolve().parent.parent
TIMED = {"train/images_per_s", "train/seconds", "run/seconds"}


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Start training in a folder of its own, or go on with it."""
    command = [sys.executable, "-m", "nuswide", "train", *OPTIONS, "--resume", "auto"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    env = own | {"MLFLOW_TRACKING_URI": tracking, "PYTHONPATH": str(ROOT)}
    log = (folder / f"{name}.log").open("ab")
    checkpoints = ["--checkpoints", f"checkpoints-{name}"]
    return subprocess.Popen(command + checkpoints, cwd=folder, env=env, stdout=log, stderr=log)


def outcome(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, list[object]]]:
    """The final weights and the metric histories of the one run that a name has made."""
    (about,) = (folder / f"checkpoints-{name}").glob("*/about.json")
    run_id = about.parent.name
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED", run.info.status
    weights = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="weights/weights.safetensors"
    )
    keys = set(run.data.metrics) - TIMED
    histories = {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
        for key in sorted(keys)
    }
    return load_file(weights), histories


def is_recorded(folder: Path, name: str) -> bool:
    """Whether a run had done all its work already."""
    found = list((folder / f"checkpoints-{name}").glob("*/about.json"))
    return bool(found) and json.loads(found[0].read_text())["recorded"]


def kill_one(folder: Path, name: str, rng: random.Random, seconds: float) -> tuple[str, float]:
    """Train and kill at a random moment, until that came before the end; gives name and moment."""
    for attempt in range(100):
        own = f"{name}-{attempt}"
        moment_s = rng.uniform(0, seconds)
        process = start(folder, own)
        time.sleep(moment_s)
        process.kill()
        process.wait()
        if not is_recorded(folder, own):
            return own, moment_s
    raise SystemExit("training always ended before it could be killed")


def main() -> None:
    """Kill and resume, and count what came out equal."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        sample = [sys.executable, "-m", "nuswide", "sample", "data", "--images", "64"]
        subprocess.run(sample, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        os.chdir(folder)
        begin = time.perf_counter()
        assert start(folder, "whole").wait() == 0, (folder / "whole.log").read_text()
        seconds = time.perf_counter() - begin
        weights, histories = outcome(folder, "whole")
        print(f"undisturbed: {seconds:.0f} s, {len(histories)} metrics", flush=True)
        equal = 0
        for number in range(kills):
            name, moment_s = kill_one(folder, f"kill-{number}", rng, seconds)
            states = list((folder / f"checkpoints-{name}").glob("*/last.pt"))
            assert start(folder, name).wait() == 0, (folder / f"{name}.log").read_text()
            own_weights, own_histories = outcome(folder, name)
            same_weights = all(torch.equal(own_weights[k], v) for k, v in weights.items())
            differing = [k for k in histories if own_histories.get(k) != histories[k]]
            differing += [k for k in own_histories if k not in histories]
            equal += same_weights and not differing
            print(
                f"killed after {moment_s:5.1f} s, {'with' if states else 'without'} a checkpoint: "
                f"weights {'equal' if same_weights else 'DIFFER'}, "
                f"histories {'DIFFER: ' + ', '.join(differing) if differing else 'equal'}",
                flush=True,
            )
    print(f"{equal} of {kills} equal (claim: all); torch {torch.__version__}")


if __name__ == "__main__":
    main()
