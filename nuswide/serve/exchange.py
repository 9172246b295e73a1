"""One exchange with a caller, in ASGI's terms.

Owns the form of every answer and its headers. Decides nothing.

    await Answer(send, visit, has_body=False).send(200, b"{}")
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from nuswide.serve.telemetry import Visit

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LINGER_S = 5.0


class Answer:
    """The way back to the caller."""

    def __init__(self, send: Send, visit: Visit, *, has_body: bool) -> None:
        self._send = send
        self._visit = visit
        self.begun = False
        self.body_is_read = not has_body

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a whole answer. It ends the connection if the request's body was not read."""
        self.begun = True
        self._visit.status, self._visit.bytes_out = status, len(body)
        own = {"content-type": content_type, "content-length": str(len(body))}
        own |= {"x-request-id": self._visit.id} | _SAFE | (headers or {})
        if not self.body_is_read:
            own["connection"] = "close"
        start = [(name.encode(), value.encode()) for name, value in own.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})


async def disconnect(receive: Receive) -> None:
    """Wait until the caller has closed the connection; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def drain(receive: Receive, max_bytes: int) -> None:
    """Throw away what a caller still sends, for some seconds, so that it then reads the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while max_bytes > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                max_bytes -= len(message.get("body", b""))
