"""The limits of the server: a frozen dataclass of flat fields with defaults, units and ranges.

It imports nothing heavy, so that `--help` is instant.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from nuswide.core.machine import available_cores

MIB = 2**20


def _field(default: Any, help: str, low: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "low": low})


@dataclass(frozen=True)
class Settings:
    """Every limit of the server. Raises ValueError if one is out of range."""

    # Processes
    workers: int = _field(1, "Worker processes.", low=1)
    threads: int = _field(
        0, "Threads that score one image in a worker; 0: the cores divided by the workers.", low=0
    )
    concurrency: int = _field(
        2,
        "Requests that a worker processes at once: one is decoded while another is scored.",
        low=1,
    )

    # Sizes and counts
    body_mib: float = _field(16, "Largest request body, in MiB.", low=0.001)
    held_mib: float = _field(
        256, "Request bodies that a worker holds in memory at once, in MiB.", low=0.001
    )
    pixels: int = _field(
        50_000_000, "Most pixels of an image; decoding takes 3 to 20 bytes a pixel.", low=1
    )
    pictures: int = _field(32, "Most images of a request.", low=1)
    queue: int = _field(32, "Requests that wait in a worker's queue; further ones get 503.", low=0)
    connections: int = _field(256, "Open connections of a worker; further ones are closed.", low=1)

    # Times
    header_s: float = _field(10, "Seconds for a request's headers to arrive.", low=0.01)
    body_s: float = _field(30, "Seconds for a request's body to arrive.", low=0.01)
    request_s: float = _field(
        60, "Seconds from the end of the body to the response; after that 503.", low=0.01
    )
    keep_alive_s: int = _field(5, "Seconds that an idle connection is kept open.", low=1)
    stop_s: int = _field(60, "Seconds for accepted requests to finish after SIGTERM.", low=1)

    # Access
    allowed_hosts: str = _field(
        "", "Host names of the server, separated by commas, besides localhost and IP addresses."
    )
    api_key_file: str = _field(
        "", "File with the API key that clients must send; default: NUSWIDE_API_KEY, if set."
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low = getattr(self, f.name), f.metadata["low"]
            if low is not None and not low <= value < math.inf:
                raise ValueError(f"{f.name}={value} must be {low} or more")

    @property
    def threads_of_a_worker(self) -> int:
        """The threads that score one image."""
        return self.threads or max(1, available_cores() // self.workers)

    @property
    def host_names(self) -> frozenset[str]:
        """The allowed names in the Host header, besides IP addresses."""
        names = (name.strip().lower() for name in self.allowed_hosts.split(","))
        return frozenset({"localhost", *names} - {""})
