"""Claim: 5,000 hostile requests break nothing, and leave the server's memory as it was.

    python benchmarks/fuzz_server.py [REQUESTS]

Draws requests with hypothesis (tests/hostile.py): wrong types, nested rubbish, bombs, damaged and
polyglot files, every form that Pillow writes, wrong content types, slow senders. Sends each to a
real server of two workers, some on connections that are then left open. Prints the statuses, the
memory on the way, and whether a sound request still gets the exact scores.
"""

import contextlib
import io
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from serve_setup import environment, hostile, photo, register_model, serving

from nuswide.tagger import Tagger, decode_image

UNFINISHED = (
    b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    b"Content-Length: 9000000\r\n\r\n" + bytes(100_000)
)
LIMITS = "--workers 2 --body_s 2 --header_s 2 --request_s 20".split()


def send(server: serving.Server, request: hostile.Hostile) -> str:
    """Send a request, slowly if it says so; the status, or what came in its place."""
    path = request.path + ("?" + request.query if request.query else "")
    head = f"{request.method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if request.content_type is not None:
        head += f"Content-Type: {request.content_type}\r\n"
    head += f"Content-Length: {len(request.body)}\r\n\r\n"
    answer = b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        with server.send(head.encode()) as connection:
            third = len(request.body) // 3 + 1
            for start in range(0, len(request.body), third):
                connection.sendall(request.body[start : start + third])
                time.sleep(request.pause_s)
            while part := connection.recv(65536):
                answer += part
    if hostile.SECRET.encode() in answer:
        return "ECHOED"
    return answer.split()[1].decode() if answer else "closed"


def leave_open(server: serving.Server, left: list[socket.socket]) -> None:
    """Leave a connection in mid-header and one in mid-body; the server has to end them."""
    for start in (b"POST /inv", UNFINISHED):
        with contextlib.suppress(OSError):
            left.append(server.send(start))
    while len(left) > 20:
        left.pop(0).close()


def main() -> None:
    """Send them, and look."""
    n_requests = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tagger = Tagger.load(register_model(folder, "resnet18", 64))
        image = decode_image(io.BytesIO(photo()), 64)[None]
        expected = dict(zip(tagger.labels, tagger.score(image)[0].tolist(), strict=True))
        with serving.serving(folder, environment(folder), *LIMITS) as server:
            workers, begun = server.workers(), time.monotonic()
            assert server.scores(photo()) == expected
            statuses: Counter[str] = Counter()
            memory: list[float] = []
            left: list[socket.socket] = []
            slow: list[threading.Thread] = []
            drawn = [0]

            def count(request: hostile.Hostile) -> None:
                statuses[send(server, request)] += 1

            @seed(0)
            @settings(
                max_examples=n_requests, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(hostile.requests(slow=True))
            def attack(request: hostile.Hostile) -> None:
                if request.pause_s:
                    slow.append(threading.Thread(target=count, args=(request,)))
                    slow[-1].start()
                else:
                    count(request)
                drawn[0] += 1
                if drawn[0] % 50 == 0:
                    leave_open(server, left)
                if drawn[0] % (n_requests // 10) == 0:
                    memory.append(server.resident_mb())
                    print(f"{drawn[0]:6d} requests: {memory[-1]:.0f} MB", flush=True)

            attack()
            for thread in slow:
                thread.join()
            for connection in left:
                connection.close()
            exact = server.scores(photo()) == expected
            print(
                f"{statuses.total()} requests in {time.monotonic() - begun:.0f} s, {len(slow)} of "
                f"them slow: {dict(sorted(statuses.items()))}"
            )
            print(f"workers the same: {server.workers() == workers}; exact scores: {exact}")
            growth = server.resident_mb() / memory[1]
            print(f"memory at the end / after a fifth: {growth:.2f} (claim: at most 1.05)")


if __name__ == "__main__":
    main()
