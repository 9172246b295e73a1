"""SIGINT and SIGTERM as a request to stop, which the training loop meets between two steps.

Owns the signal handlers while training. Never saves anything.

    >>> with StopSignals() as stop:
    ...     stop.check(step=0)  # raises Interrupted once a signal has arrived
"""

import signal
from types import FrameType
from typing import Self

from nuswide.core import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CHECKED_EVERY = 10  # steps, with several processes


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop."""


class StopSignals:
    """Handles the signals while it is entered; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.is_requested = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        distributed.say("stopping; signal again to stop without a checkpoint")

    def check(self, step: int) -> None:
        """Raise Interrupted before a step if any process has received a signal.

        Several processes exchange this only every few steps, as it synchronizes them.
        """
        if step % _CHECKED_EVERY == 0 or distributed.world_size() == 1:
            if distributed.any_of(self.is_requested):
                raise Interrupted

    def check_own(self) -> None:
        """Raise Interrupted if this is the only process and has received a signal."""
        if self.is_requested and distributed.world_size() == 1:
            raise Interrupted
