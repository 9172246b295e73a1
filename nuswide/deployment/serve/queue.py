"""The queue: whose turn it is to be scored.

Owns the slots of a worker and who waits for them, first come, first served. Reads no request.

    turns = Turns(Settings(), telemetry)
    waited_s = await turns.take(receive, deadline)
    task.add_done_callback(turns.end)
"""

import asyncio
import time
from typing import Any

from nuswide.deployment.serve.asgi import Receive, disconnect
from nuswide.deployment.serve.errors import Gone, Refusal
from nuswide.deployment.serve.settings import Settings
from nuswide.deployment.serve.telemetry import Telemetry


class Turns:
    """The slots of one worker."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._max_waiting = settings.queue
        self._waiting = 0
        self._telemetry = telemetry
        self._pace_s = 0.1  # between two ends, while there is a queue
        self._last_end = 0.0

    def check_room(self) -> None:
        """Raise Refusal 503 if no more may wait."""
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise self.too_busy()

    def too_busy(self) -> Refusal:
        """A 503 that says after how long those who wait now will have been served."""
        wait_s = max(1, round(self._pace_s * (self._waiting + 1)))
        return Refusal(
            503, "too many requests are waiting; come again later", retry_after=str(wait_s)
        )

    async def take(self, receive: Receive, deadline: float) -> float:
        """Wait for a slot, and say how many seconds it took.

        Raises Refusal 503 when the queue is full or the deadline comes, and Gone if the caller
        leaves meanwhile.
        """
        self.check_room()
        begun = time.perf_counter()
        if self._slots.locked():
            self._waiting += 1
            self._telemetry.waiting.set(self._waiting)
            try:
                await self._wait(receive, deadline)
            finally:
                self._waiting -= 1
                self._telemetry.waiting.set(self._waiting)
        else:
            await self._slots.acquire()
        self._telemetry.running.inc()
        return time.perf_counter() - begun

    async def _wait(self, receive: Receive, deadline: float) -> None:
        turn = asyncio.create_task(self._slots.acquire())
        gone = asyncio.create_task(disconnect(receive))
        try:
            await asyncio.wait(
                {turn, gone}, timeout=deadline - time.monotonic(),
                return_when=asyncio.FIRST_COMPLETED,
            )  # fmt: skip
            if gone.done() or not turn.done():
                if not turn.cancel():  # it has the slot already
                    self._slots.release()
                raise Gone if gone.done() else self.too_busy()
        finally:
            gone.cancel()

    def end(self, work: "asyncio.Task[Any]") -> None:
        """Free the slot that a task had."""
        now = time.perf_counter()
        if self._waiting:
            self._pace_s += 0.1 * (now - self._last_end - self._pace_s)
        self._last_end = now
        self._slots.release()
        self._telemetry.running.dec()
        if not work.cancelled():
            work.exception()  # nobody may be waiting for it any more
