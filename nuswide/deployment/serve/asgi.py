"""ASGI types and the responses of the server, with the headers that all of them carry.

await Response(scope, receive, send, record).send(200, b"{}")
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from nuswide.deployment.serve.errors import HTTPError
from nuswide.deployment.serve.telemetry import RequestRecord

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_DISCARD_S = 5.0


class Response:
    """The response to one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        self._receive = receive
        self._send = send
        self._record = record
        names = {name for name, _ in scope["headers"]}
        # With Expect: 100-continue, the client sends its body only after it is told to.
        self._expects_continue = b"expect" in names
        self.started = False
        self.body_is_read = not names & {b"content-length", b"transfer-encoding"}

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send the whole response; close the connection if the request's body was not read."""
        if not self.body_is_read and not self._expects_continue and status != 408:
            await _discard_body(self._receive)
        self.started = True
        self._record.status, self._record.bytes_out = status, len(body)
        own = {"content-type": content_type, "content-length": str(len(body))}
        own |= {"x-request-id": self._record.id} | _SECURITY_HEADERS | (headers or {})
        if not self.body_is_read:
            own["connection"] = "close"
        start = [(name.encode(), value.encode()) for name, value in own.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})

    async def send_error(self, error: HTTPError) -> None:
        """Send an error, unless the response has already started."""
        if not self.started:
            await self.send(error.status, error.body, "application/json", dict(error.headers))


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client closes the connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _discard_body(receive: Receive) -> None:
    """Read and drop the rest of the body for a few seconds; a sending client reads no response."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (message := await receive()).get("more_body", False):
                del message
