"""SIGINT and SIGTERM as a wish to stop, which the loop grants between two steps.

Owns the signal handlers while training. Never saves anything.

    with Stop() as stop:
        stop.check()  # raises Interrupted once a signal came
"""

import signal
from types import FrameType
from typing import Self

from nuswide.core import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ASKED_EVERY = 10  # steps


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop."""


class Stop:
    """Takes the signals; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        distributed.say("stopping; once more to stop without a checkpoint")

    def check(self, step: int) -> None:
        """Raise Interrupted before a step if any process was asked to stop.

        Many processes ask each other every few steps, since asking makes them wait.
        """
        if step % _ASKED_EVERY == 0 or distributed.world_size() == 1:
            if distributed.any_of(self.asked):
                raise Interrupted

    def check_alone(self) -> None:
        """Raise Interrupted where no other process must hear of it."""
        if self.asked and distributed.world_size() == 1:
            raise Interrupted
