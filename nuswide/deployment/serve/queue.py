"""The queue of requests that wait to be scored: first come, first served.

queue = RequestQueue(Settings(), telemetry)
waited_s = await queue.acquire(receive, deadline)
task.add_done_callback(queue.release)
"""

import asyncio
import time
from typing import Any

from nuswide.deployment.serve.asgi import Receive, wait_for_disconnect
from nuswide.deployment.serve.errors import ClientDisconnect, HTTPError
from nuswide.deployment.serve.settings import Settings
from nuswide.deployment.serve.telemetry import Telemetry


class RequestQueue:
    """The scoring slots of one worker and the requests that wait for one."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._max_waiting = settings.queue
        self._waiting = 0
        self._telemetry = telemetry
        self._interval_s = 0.1  # between two completions while requests wait: a moving average
        self._last_release = 0.0

    def check_room(self) -> None:
        """Raise HTTPError 503 if the queue is full."""
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise self.overloaded()

    def overloaded(self) -> HTTPError:
        """Return a 503 whose Retry-After is the time that the present queue is expected to take."""
        wait_s = max(1, round(self._interval_s * (self._waiting + 1)))
        return HTTPError(
            503, "too many requests are waiting; try again later", retry_after=str(wait_s)
        )

    async def acquire(self, receive: Receive, deadline: float) -> float:
        """Wait for a slot and return the seconds waited.

        Raises HTTPError 503 if the queue is full or the deadline passes, and ClientDisconnect if
        the client closes the connection meanwhile.
        """
        self.check_room()
        start = time.perf_counter()
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
        return time.perf_counter() - start

    async def _wait(self, receive: Receive, deadline: float) -> None:
        slot = asyncio.create_task(self._slots.acquire())
        disconnect = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait(
                {slot, disconnect}, timeout=deadline - time.monotonic(),
                return_when=asyncio.FIRST_COMPLETED,
            )  # fmt: skip
            if disconnect.done() or not slot.done():
                if not slot.cancel():  # it has been acquired already
                    self._slots.release()
                raise ClientDisconnect if disconnect.done() else self.overloaded()
        finally:
            disconnect.cancel()

    def release(self, task: "asyncio.Task[Any]") -> None:
        """Release the slot of a finished task."""
        now = time.perf_counter()
        if self._waiting:
            self._interval_s += 0.1 * (now - self._last_release - self._interval_s)
        self._last_release = now
        self._slots.release()
        self._telemetry.running.dec()
        if not task.cancelled():
            task.exception()  # retrieved here, since its request may have timed out
