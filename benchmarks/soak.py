"""Claim: mixed load for half an hour brings no error, and no growth of memory after five minutes.

    python benchmarks/soak.py [MINUTES] [FOLDER]

Serves ResNeXt50 at 256 px with random weights to callers of every form (JSON, raw, form; one
picture and several), to hostile and slow ones, and to some that hang up. Each sound answer must
have the exact scores. Draws the memory into FOLDER/soak.png and writes it to FOLDER/soak.csv.
"""

import base64
import contextlib
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_server import send
from hypothesis import HealthCheck, Phase, given, seed, settings
from serve_setup import environment, hostile, photo, register_model, serving

from nuswide.reporting.plots.style import BLUE, GREY, new_figure, open_axis, to_image
from nuswide.tagger import Tagger, decode_image

SIZE_PX, STEP_S = 256, 5.0
LIMITS = "--body_s 3 --header_s 3".split()
FORM = {"Content-Type": "multipart/form-data; boundary=B"}


def draw_hostile(count: int) -> list[hostile.Hostile]:
    """Some hostile requests."""
    drawn: list[hostile.Hostile] = []

    @seed(1)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(hostile.requests(slow=True))
    def draw(request: hostile.Hostile) -> None:
        drawn.append(request)

    draw()
    return drawn


class Soak:
    """Callers, and what they found."""

    def __init__(self, server: serving.Server, tagger: Tagger) -> None:
        self.server, self.stop = server, threading.Event()
        self.found: Counter[str] = Counter()
        self.photos = [photo(seed=n, width=200 + 150 * n, height=300) for n in range(6)]
        images = [decode_image(io.BytesIO(one), SIZE_PX) for one in self.photos]
        self.expected = [
            dict(zip(tagger.labels, tagger.score(image[None])[0].tolist(), strict=True))
            for image in images
        ]
        self.hostile = draw_hostile(400)

    def sound(self, rng: random.Random) -> None:
        """Ask soundly, in any form, and compare every score."""
        picked = [rng.randrange(len(self.photos)) for _ in range(rng.choice([1, 1, 1, 4]))]
        files, query = [self.photos[n] for n in picked], "/invocations?all_scores=true"
        form = rng.choice(["json", "form", "raw"])
        if form == "json":
            texts = [base64.b64encode(file).decode() for file in files]
            body, headers = json.dumps({"instances": texts}).encode(), dict(serving.JPEG)
            headers["Content-Type"] = "application/json"
        elif form == "form":
            head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            body, headers = b"".join(head + f + b"\r\n" for f in files) + b"--B--\r\n", FORM
        else:
            picked, (body, *_), headers = picked[:1], files, serving.JPEG
        status, answer = self.server.ask(query, body, headers)
        if status == 200:
            rows = [row["all_scores"] for row in json.loads(answer)["predictions"]]
            right = rows == [self.expected[n] for n in picked]
            self.found["sound: exact" if right else "sound: WRONG SCORES"] += 1
        else:
            self.found[f"sound: {status}"] += 1
            time.sleep(0.5)

    def attack(self, rng: random.Random) -> None:
        """Send something hostile."""
        self.found[f"hostile: {send(self.server, rng.choice(self.hostile))}"] += 1
        time.sleep(0.1)

    def hang_up(self, rng: random.Random) -> None:
        """Send a sound request and go, or only a part of it and stay."""
        body = self.photos[0]
        head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n" \
               f"Content-Length: {len(body)}\r\n\r\n"  # fmt: skip
        with self.server.send((head.encode() + body)[: rng.choice([20, 5000, 10**6])]):
            time.sleep(rng.choice([0, 0.05, 4]))
        self.found["hung up"] += 1

    def run(self, act: Callable[[random.Random], None], number: int) -> None:
        """Act until the end."""
        rng = random.Random(number)
        while not self.stop.is_set():
            try:
                act(rng)
            except Exception as error:  # noqa: BLE001 - every error is a finding
                self.found[f"{act.__name__}: {type(error).__name__}"] += 1
                time.sleep(0.5)


def draw(memory: np.ndarray, settled_min: float, path: Path) -> None:
    """Draw minutes against megabytes."""
    figure = new_figure(8, 3.5)
    axis = figure.subplots()
    axis.plot(memory[:, 0], memory[:, 1], color=BLUE)
    axis.axvline(settled_min, color=GREY, linestyle=":")
    axis.set(xlabel="minutes", ylabel="memory of server and worker, MB")
    axis.set_ylim(0, 1.1 * memory[:, 1].max())
    axis.set_title("Memory under mixed load; claim: no growth right of the line", fontsize=11)
    open_axis(axis)
    to_image(figure).save(path)


def main() -> None:
    """Load the server, and watch it."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "data/soak")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        tagger = Tagger.load(register_model(folder, "resnext50_32x4d", SIZE_PX))
        server = stack.enter_context(serving.serving(folder, environment(folder), *LIMITS))
        soak, workers = Soak(server, tagger), server.workers()
        del tagger
        acts = [soak.sound] * 4 + [soak.attack] * 2 + [soak.hang_up]
        threads = [threading.Thread(target=soak.run, args=(a, n)) for n, a in enumerate(acts)]
        for thread in threads:
            thread.start()
        begun, rows = time.monotonic(), []
        while (passed := time.monotonic() - begun) < 60 * minutes:
            rows.append((passed / 60, server.resident_mb()))
            time.sleep(STEP_S)
        soak.stop.set()
        for thread in threads:
            thread.join()
        same = server.workers() == workers
    memory = np.array(rows)
    np.savetxt(out / "soak.csv", memory, "%.3f", ",", header="minutes,megabytes", comments="")
    settled = min(5.0, minutes / 3)
    draw(memory, settled, out / "soak.png")
    late = memory[memory[:, 0] >= settled]
    slope, _ = np.polyfit(late[:, 0], late[:, 1], 1)
    quarter = max(1, len(late) // 4)
    first, last = np.median(late[:quarter, 1]), np.median(late[-quarter:, 1])
    for what, count in sorted(soak.found.items()):
        print(f"{what:32s} {count}")
    print(f"worker the same: {same}")
    print(
        f"after {settled:.1f} minutes: {first:.0f} MB in the first quarter, {last:.0f} MB in the "
        f"last, {slope:+.2f} MB a minute; drawn in {out / 'soak.png'}"
    )


if __name__ == "__main__":
    main()
