"""Several gloo processes, as torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import Workspace

pytestmark = pytest.mark.slow

PREDICT = """
import sys, numpy as np, torch
from pathlib import Path
from nuswide.core import distributed
from nuswide.config import Config
from nuswide.data.dataset import Dataset
from nuswide.evaluation.evaluate import predict, torch_score
from nuswide.data.manifest import Manifest
from nuswide.models.networks import create_model
cpu = torch.device("cpu")
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (203, 3, 32, 32)).astype(np.uint8)
manifest = Manifest(Path(), tuple(map(str, range(203))), ("a", "b", "c"),
                    np.ones((203, 3), np.uint8), np.array(["test"] * 203))
with distributed.process_group(cpu):
    model = create_model(Config(backbone="resnet18"), n_labels=3)
    scores = predict(torch_score(model, cpu), Dataset(manifest, images, np.arange(203)))
    np.save(f"{sys.argv[1]}-{distributed.rank()}.npy", scores)
"""
TINY = {
    "backbone": "resnet18", "image_size_px": "32", "batch_size": "4", "lr": "1e-3",
    "registered_model": "none", "checkpoint_minutes": "0.001",
}  # fmt: skip


def torchrun(workspace: Workspace, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, *arguments], cwd=workspace.folder, text=True, start_new_session=True,
        env=workspace.env | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_many_processes_give_the_scores_of_one(workspace: Workspace) -> None:
    (workspace.folder / "predict.py").write_text(PREDICT)
    workspace.run(sys.executable, "predict.py", "one")
    for count in (2, 3):  # 203 images are 4 batches: the processes' shares are not alike
        process = torchrun(workspace, f"--nproc-per-node={count}", "predict.py", f"of{count}")
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        one = np.load(workspace.folder / "one-0.npy")
        for rank in range(count):
            assert (np.load(workspace.folder / f"of{count}-{rank}.npy") == one).all()


def test_two_processes_train_as_one_run_and_come_back_when_one_is_killed(
    workspace: Workspace, tiny_data: Path
) -> None:
    options = TINY | {"data": str(tiny_data), "epochs": "12"}
    arguments = [x for k, v in options.items() for x in (f"--{k}", v)]
    process = torchrun(
        workspace, "--nproc-per-node=2", "--max-restarts=1", "-m", "nuswide", "train", *arguments
    )
    folder = workspace.folder / "data" / "checkpoints"
    for _ in range(1200):
        if list(folder.glob("*/last.pt")):
            break
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    workers = [int(pid) for pid in listed.stdout.split()]
    os.kill(workers[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    (about,) = folder.glob("*/about.json")
    run_id = about.parent.name
    assert f"resuming run {run_id}" in output
    assert json.loads(about.read_text())["recorded"]
    client = mlflow.MlflowClient(workspace.env["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["0"])
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "4" and run.data.params["global_batch_size"] == "8"
    steps = sorted(m.step for m in client.get_metric_history(run_id, "train/loss"))
    assert steps == list(range(12 * (34 // 8)))
