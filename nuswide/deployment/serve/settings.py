"""The limits of the server: a frozen dataclass of flat fields.

Owns defaults, units and ranges. Imports nothing heavy, so that `--help` is instant.

    settings = Settings(workers=2)
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
    """Every limit of the server; raises ValueError when one is out of range."""

    # Processes
    workers: int = _field(1, "Processes that answer.", low=1)
    threads: int = _field(
        0, "Threads that score one picture in a worker; 0: the cores divided by the workers.", low=0
    )
    concurrency: int = _field(
        2, "Requests a worker handles at once: one is decoded while another is scored.", low=1
    )

    # How much
    body_mib: float = _field(16, "Largest body of a request, in MiB.", low=0.001)
    held_mib: float = _field(256, "All bodies that a worker holds at once, in MiB.", low=0.001)
    pixels: int = _field(
        50_000_000, "Most pixels of a picture; it takes 3 to 20 bytes each.", low=1
    )
    pictures: int = _field(32, "Most pictures of a request.", low=1)
    queue: int = _field(
        32, "Requests that wait in a worker for their turn; more are told 503.", low=0
    )
    connections: int = _field(256, "Open connections of a worker; more are closed.", low=1)

    # How long
    header_s: float = _field(10, "Seconds that a request's headers may take to arrive.", low=0.01)
    body_s: float = _field(30, "Seconds that a body may take to arrive.", low=0.01)
    request_s: float = _field(
        60, "Seconds from the end of the body to the answer; then 503.", low=0.01
    )
    keep_alive_s: int = _field(5, "Seconds that an idle connection stays open.", low=1)
    stop_s: int = _field(60, "Seconds that what was taken gets to finish on SIGTERM.", low=1)

    # Who
    allowed_hosts: str = _field(
        "", "Names, parted by commas, that the server goes by beside localhost and its addresses."
    )
    api_key_file: str = _field(
        "", "File with the key that callers must give; else NUSWIDE_API_KEY, if it is set."
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low = getattr(self, f.name), f.metadata["low"]
            if low is not None and not low <= value < math.inf:
                raise ValueError(f"{f.name}={value} must be {low} or more")

    @property
    def threads_of_a_worker(self) -> int:
        """How many threads score one picture."""
        return self.threads or max(1, available_cores() // self.workers)

    @property
    def host_names(self) -> frozenset[str]:
        """The names that a Host header may hold, beside addresses."""
        names = (name.strip().lower() for name in self.allowed_hosts.split(","))
        return frozenset({"localhost", *names} - {""})
