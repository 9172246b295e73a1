"""What the server tells about itself: an access log, one JSON object a line, and /metrics.

Owns names and forms of both. Never holds a picture, a key, a query or a header.

    telemetry = Telemetry(sys.stdout)
    telemetry.record(visit)
"""

import json
import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60)


@dataclass
class Visit:
    """One request, as it is told of."""

    method: str
    path: str  # a known one, or "other"
    client: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    begun: float = field(default_factory=time.perf_counter)
    status: int = 499  # the caller went before there was an answer
    bytes_in: int = 0
    bytes_out: int = 0
    pictures: int = 0
    received_s: float = 0.0
    waited_s: float = 0.0


class Telemetry:
    """The server's metrics, and the log of what it was asked. log: None for no log."""

    def __init__(self, log: TextIO | None) -> None:
        self._log = log
        # Several processes share their figures by files in a folder that this variable names.
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "nuswide_requests", "Requests by path and status.", ["path", "status"], registry=own
        )
        self._pictures = Counter("nuswide_pictures", "Pictures that were scored.", registry=own)
        self._seconds = Histogram(
            "nuswide_request_seconds", "Seconds from a request's headers to its answer.",
            ["path"], registry=own, buckets=_SECONDS,
        )  # fmt: skip
        self._waited = Histogram(
            "nuswide_queue_seconds", "Seconds that a request waited for its turn.",
            registry=own, buckets=_SECONDS,
        )  # fmt: skip
        self.waiting = Gauge(
            "nuswide_waiting", "Requests that wait for their turn.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip
        self.running = Gauge(
            "nuswide_running", "Requests that are being scored.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip
        self.held_bytes = Gauge(
            "nuswide_held_bytes", "Bytes of the bodies that are held.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip

    def record(self, visit: Visit) -> None:
        """Count a request that is over, and log it."""
        seconds = time.perf_counter() - visit.begun
        self._requests.labels(visit.path, str(visit.status)).inc()
        self._seconds.labels(visit.path).observe(seconds)
        if visit.status == 200 and visit.pictures:
            self._pictures.inc(visit.pictures)
            self._waited.observe(visit.waited_s)
        if self._log:
            entry = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": "request", "id": visit.id, "worker": os.getpid(),
                "client": visit.client, "method": visit.method, "path": visit.path,
                "status": visit.status, "ms": round(seconds * 1e3, 1),
                "received_ms": round(visit.received_s * 1e3, 1),
                "waited_ms": round(visit.waited_s * 1e3, 1),
                "bytes_in": visit.bytes_in, "bytes_out": visit.bytes_out,
                "pictures": visit.pictures,
            }  # fmt: skip
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()

    def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus' text form."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
