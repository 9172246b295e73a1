"""The access log, one JSON object a line, and the metrics for Prometheus.

Neither contains images, keys, query strings or headers.
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
class RequestRecord:
    """What is logged and counted of one request."""

    method: str
    path: str  # a known path, or "other"
    client: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    start: float = field(default_factory=time.perf_counter)
    status: int = 499  # the client disconnected before the response
    bytes_in: int = 0
    bytes_out: int = 0
    images: int = 0
    received_s: float = 0.0
    waited_s: float = 0.0


class Telemetry:
    """The server's metrics and its access log. log: None for no log."""

    def __init__(self, log: TextIO | None) -> None:
        self._log = log
        # The workers share their metrics as files in the folder that this variable names.
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "nuswide_requests", "Requests by path and status.", ["path", "status"], registry=own
        )
        self._pictures = Counter("nuswide_pictures", "Images scored.", registry=own)
        self._seconds = Histogram(
            "nuswide_request_seconds", "Seconds from a request's headers to its response.",
            ["path"], registry=own, buckets=_SECONDS,
        )  # fmt: skip
        self._waited = Histogram(
            "nuswide_queue_seconds", "Seconds that a request waited in the queue.",
            registry=own, buckets=_SECONDS,
        )  # fmt: skip
        self.waiting = Gauge(
            "nuswide_waiting", "Requests in the queue.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip
        self.running = Gauge(
            "nuswide_running", "Requests that are being scored.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip
        self.held_bytes = Gauge(
            "nuswide_held_bytes", "Bytes of request bodies in memory.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip

    def observe(self, record: RequestRecord) -> None:
        """Count and log a finished request."""
        seconds = time.perf_counter() - record.start
        self._requests.labels(record.path, str(record.status)).inc()
        self._seconds.labels(record.path).observe(seconds)
        if record.status == 200 and record.images:
            self._pictures.inc(record.images)
            self._waited.observe(record.waited_s)
        if self._log:
            entry = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": "request", "id": record.id, "worker": os.getpid(),
                "client": record.client, "method": record.method, "path": record.path,
                "status": record.status, "ms": round(seconds * 1e3, 1),
                "received_ms": round(record.received_s * 1e3, 1),
                "waited_ms": round(record.waited_s * 1e3, 1),
                "bytes_in": record.bytes_in, "bytes_out": record.bytes_out,
                "pictures": record.images,
            }  # fmt: skip
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()

    def exposition(self) -> bytes:
        """Return the metrics of all workers in Prometheus' text format."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
