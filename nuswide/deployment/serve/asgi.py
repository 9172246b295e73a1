"""One exchange with a caller, in ASGI's terms.

Owns the form of every answer and its headers. Decides nothing.

    await Answer(scope, receive, send, visit).send(200, b"{}")
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from nuswide.deployment.serve.errors import Refusal
from nuswide.deployment.serve.telemetry import Visit

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

    def __init__(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        self._receive = receive
        self._send = send
        self._visit = visit
        names = {name for name, _ in scope["headers"]}
        self._waits = b"expect" in names  # the caller sends its body only if it is told to
        self.begun = False
        self.body_is_read = not names & {b"content-length", b"transfer-encoding"}

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a whole answer, which ends the connection if the request's body was not read."""
        if not self.body_is_read and not self._waits and status != 408:
            await _drain(self._receive)
        self.begun = True
        self._visit.status, self._visit.bytes_out = status, len(body)
        own = {"content-type": content_type, "content-length": str(len(body))}
        own |= {"x-request-id": self._visit.id} | _SAFE | (headers or {})
        if not self.body_is_read:
            own["connection"] = "close"
        start = [(name.encode(), value.encode()) for name, value in own.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """Say no, unless an answer is under way."""
        if not self.begun:
            await self.send(refusal.status, refusal.body, "application/json", dict(refusal.headers))


async def disconnect(receive: Receive) -> None:
    """Wait until the caller has closed the connection; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drain(receive: Receive) -> None:
    """Throw away what a caller still sends, for some seconds, or it would not read the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (message := await receive()).get("more_body", False):
                del message
