"""Claim: a request costs a bare ONNX Runtime call and a few milliseconds, for one caller or many.

    python benchmarks/serve.py [--seconds 20] [--sessions]

Serves ResNeXt50 at 256 px with random weights. Prints the seconds from the start to the first
answer; the median of a request against that of a bare call on the same picture, decoded
beforehand; and throughput and latency of 1, 8 and 32 callers against the model's own limit, with
one worker and with two. The callers run on the same cores. --sessions compares session options
instead.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from serve_setup import environment, photo, register_model, serving

from nuswide.core.machine import available_cores
from nuswide.tagger import Tagger, decode_image

SIZE_PX = 256


def milliseconds(call: Callable[[], object], seconds: float) -> list[float]:
    """The times of a call, again and again for some seconds."""
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def compare_sessions(bundle: Path, image: np.ndarray, seconds: float) -> None:
    """Print the median of a bare call under several session options."""
    cores = available_cores()
    options: dict[str, Callable[[onnxruntime.SessionOptions], None]] = {
        "as the tagger opens it": lambda o: setattr(o, "intra_op_num_threads", cores),
        "ONNX Runtime's defaults": lambda o: None,
        "one thread": lambda o: setattr(o, "intra_op_num_threads", 1),
        "twice the cores": lambda o: setattr(o, "intra_op_num_threads", 2 * cores),
        "threads sleep at once": lambda o: (
            setattr(o, "intra_op_num_threads", cores),
            o.add_session_config_entry("session.intra_op.allow_spinning", "0"),
        ),
        "branches in parallel": lambda o: (
            setattr(o, "intra_op_num_threads", cores),
            setattr(o, "execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
        ),
        "no memory arena": lambda o: (
            setattr(o, "intra_op_num_threads", cores),
            setattr(o, "enable_cpu_mem_arena", False),
        ),
    }
    print(f"session options, {cores} cores, batch 1, median of {seconds:g} s each, twice:")
    sessions = {}
    for name, change in options.items():
        made = onnxruntime.SessionOptions()
        made.inter_op_num_threads = 1
        change(made)
        sessions[name] = onnxruntime.InferenceSession(
            bundle / "model.onnx", made, providers=["CPUExecutionProvider"]
        )
    rounds = [
        {
            name: statistics.median(
                milliseconds(lambda s=s: s.run(["scores"], {"images": image}), seconds)
            )
            for name, s in sessions.items()
        }
        for _ in range(2)
    ]
    for name in options:
        print(f"  {name:26s} " + "  ".join(f"{each[name]:6.1f} ms" for each in rounds))


def load(
    server: serving.Server, callers: int, seconds: float, body: bytes
) -> tuple[list[float], int]:
    """Let callers ask one after another for some seconds; the times, and how many 503 came."""
    times: list[float] = []
    busy = [0]
    end = time.perf_counter() + seconds

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while time.perf_counter() < end:
            begun = time.perf_counter()
            connection.request("POST", "/invocations", body, serving.JPEG)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 503:
                busy[0] += 1
                time.sleep(0.2)
            else:
                assert answer.status == 200, content
                times.append(1e3 * (time.perf_counter() - begun))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, busy[0]


def one_caller(server: serving.Server, tagger: Tagger, image: np.ndarray, seconds: float) -> float:
    """Print a request's median against a bare call's, taken in turns; the bare one's."""
    body = photo()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

    def request() -> None:
        connection.request("POST", "/invocations", body, serving.JPEG)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        json.load(answer)

    bare, asked = [], []
    for _ in range(4):
        bare += milliseconds(lambda: tagger.session.run(["scores"], {"images": image}), seconds / 8)
        asked += milliseconds(request, seconds / 8)
    bare_ms, asked_ms = statistics.median(bare), statistics.median(asked)
    limit = 1.15 * bare_ms + 10
    verdict = "held" if asked_ms <= limit else "MISSED"
    print(
        f"bare call {bare_ms:.1f} ms, request {asked_ms:.1f} ms: {asked_ms / bare_ms:.2f} times "
        f"(claim: at most 1.15 times and 10 ms, here {limit:.1f} ms: {verdict})"
    )
    return bare_ms


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--sessions", action="store_true")
    parser.add_argument("--backbone", default="resnext50_32x4d")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = register_model(folder, options.backbone, SIZE_PX)
        (folder / "photo.jpg").write_bytes(photo())
        image = decode_image(folder / "photo.jpg", SIZE_PX)[None]
        if options.sessions:
            return compare_sessions(bundle, image, options.seconds)
        decoding = milliseconds(lambda: decode_image(folder / "photo.jpg", SIZE_PX), 1)
        print(
            f"{options.backbone} at {SIZE_PX} px, {available_cores()} cores, load average "
            f"{os.getloadavg()[0]:.1f}; photo of {len(photo()) / 1e3:.0f} kB is decoded in "
            f"{statistics.median(decoding):.1f} ms"
        )
        bare_ms = 0.0
        for workers in (1, 2):
            limits = ["--workers", str(workers)]
            with serving.serving(folder, environment(folder), *limits) as server:
                print(f"{workers} worker(s): {server.seconds_to_answer:.1f} s to the first answer")
                if workers == 1:
                    tagger = Tagger.load(bundle, available_cores())
                    bare_ms = one_caller(server, tagger, image, options.seconds)
                    del tagger
                for callers in (1, 8, 32):
                    times, busy = load(server, callers, options.seconds, photo())
                    rate = len(times) / options.seconds
                    p50, p95, p99 = np.percentile(times, [50, 95, 99])
                    print(
                        f"  {callers:2d} callers: {rate:5.2f} pictures/s, "
                        f"{rate * bare_ms / 1e3:.2f} of the bare call's; p50 {p50:.0f}, "
                        f"p95 {p95:.0f}, p99 {p99:.0f} ms; {busy} told to come again",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
