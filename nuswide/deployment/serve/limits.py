"""The ASGI app around MLflow's scoring app: routes, authentication, limits of size and time.

scoring = scoring_server.init(pyfunc)
app = LimitedApp(scoring, card, Settings(), key=None, telemetry=Telemetry(None))
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from pathlib import Path
from typing import Any

from nuswide.deployment.serve.asgi import App, Message, Receive, Response, Scope, Send
from nuswide.deployment.serve.errors import ClientDisconnect, HTTPError
from nuswide.deployment.serve.model import DEADLINE
from nuswide.deployment.serve.origin import check_host, check_origin
from nuswide.deployment.serve.queue import RequestQueue
from nuswide.deployment.serve.requests import TagRequest, check_content_type, read_request
from nuswide.deployment.serve.settings import MIB, Settings
from nuswide.deployment.serve.telemetry import RequestRecord, Telemetry
from nuswide.tagger import format_traceback

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_MLFLOW_PATHS = ("/ping", "/health", "/version")  # public, even with a key
_OWN_PATHS = ("/metrics", "/model")
_SCORING = "/invocations"
_PATHS = {*_PAGE_FILES, *_MLFLOW_PATHS, *_OWN_PATHS, _SCORING}
log = logging.getLogger(__name__)


class LimitedApp:
    """The ASGI app of one worker. card: the response to GET /model. key: the API key, if any."""

    def __init__(
        self,
        scoring: App,
        card: dict[str, Any],
        settings: Settings,
        key: str | None,
        telemetry: Telemetry,
    ) -> None:
        self._scoring = scoring
        self._card = json.dumps(card).encode()
        self._settings = settings
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()
        self._telemetry = telemetry
        self._queue = RequestQueue(settings, telemetry)
        self._held_bytes = 0
        self._files = {
            path: ((PAGE / name).read_bytes(), t) for path, (name, t) in _PAGE_FILES.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request, valid or not, and log it."""
        path = scope["path"] if scope["path"] in _PATHS else "other"
        client = (scope.get("client") or ("",))[0]
        method = scope["method"] if len(scope["method"]) < 10 else "other"
        record = RequestRecord(method, path, client)
        response = Response(scope, receive, send, record)
        try:
            await self._route(scope, receive, response, record)
        except HTTPError as error:
            await response.send_error(error)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.error("%s\n%s", type(error).__name__, format_traceback(error))
            await response.send_error(HTTPError(500, "internal server error"))
        finally:
            self._telemetry.observe(record)

    async def _route(
        self, scope: Scope, receive: Receive, response: Response, record: RequestRecord
    ) -> None:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        check_host(headers.get("host", ""), self._settings.host_names)
        if record.path == "other":
            raise HTTPError(404, "not found; send images to /invocations")
        allowed = ("POST",) if record.path == _SCORING else ("GET", "HEAD")
        if scope["method"] not in allowed:
            raise HTTPError(405, f"use {allowed[0]}", allow=", ".join(allowed))
        if record.path in self._files:
            content, content_type = self._files[record.path]
            return await response.send(200, content, content_type)
        if record.path in _MLFLOW_PATHS:
            return await response.send(*await self._call_mlflow(scope, b"", "GET"))
        self._check_key(headers)
        if record.path == "/metrics":
            text = self._telemetry.exposition()
            return await response.send(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if record.path == "/model":
            return await response.send(200, self._card)
        check_origin(headers)
        await self._invoke(scope, headers, receive, response, record)

    def _check_key(self, headers: dict[str, str]) -> None:
        if self._key is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        if not (hmac.compare_digest(digest, self._key) and scheme.lower() == "bearer"):
            raise HTTPError(
                401, "send the API key in the header Authorization: Bearer KEY",
                www_authenticate="Bearer",
            )  # fmt: skip

    # POST /invocations

    async def _invoke(
        self,
        scope: Scope,
        headers: dict[str, str],
        receive: Receive,
        response: Response,
        record: RequestRecord,
    ) -> None:
        content_type = headers.get("content-type", "")
        check_content_type(content_type)
        declared = headers.get("content-length", "0")
        if len(declared) > 18 or int(declared) > self._settings.body_mib * MIB:
            raise self._too_large()
        self._queue.check_room()
        try:
            body = await self._receive(receive, response, record)
            deadline = time.monotonic() + self._settings.request_s
            record.waited_s = await self._queue.acquire(receive, deadline)
            task = asyncio.create_task(self._score(scope, body, content_type, deadline, record))
            task.add_done_callback(self._queue.release)
            done, _ = await asyncio.wait({task}, timeout=deadline - time.monotonic())
            if not done:
                raise self._queue.overloaded()
            await response.send(*task.result())
        finally:
            self._held_bytes -= record.bytes_in
            self._telemetry.held_bytes.set(self._held_bytes)

    async def _receive(self, receive: Receive, response: Response, record: RequestRecord) -> bytes:
        """Receive the body, within the limits of bytes and seconds."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._settings.body_s):
                while not response.body_is_read:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    response.body_is_read = not message.get("more_body", False)
                    parts.append(message.get("body", b""))
                    self._count_bytes(len(parts[-1]), record)
        except TimeoutError:
            raise HTTPError(408, f"the body took longer than {self._settings.body_s:g} s") from None
        record.received_s = time.perf_counter() - record.start
        return b"".join(parts)

    def _count_bytes(self, n_bytes: int, record: RequestRecord) -> None:
        record.bytes_in += n_bytes
        self._held_bytes += n_bytes
        self._telemetry.held_bytes.set(self._held_bytes)
        if record.bytes_in > self._settings.body_mib * MIB:
            raise self._too_large()
        if self._held_bytes > self._settings.held_mib * MIB:
            raise self._queue.overloaded()

    def _too_large(self) -> HTTPError:
        return HTTPError(413, f"the body is larger than {self._settings.body_mib:g} MiB")

    async def _score(
        self, scope: Scope, body: bytes, content_type: str, deadline: float, record: RequestRecord
    ) -> tuple[int, bytes, str]:
        DEADLINE.set(deadline + 1)  # after the client's 503
        request: TagRequest = await asyncio.to_thread(
            read_request, body, content_type, scope["query_string"],
            max_images=self._settings.pictures,
        )  # fmt: skip
        record.images = len(request.images)
        result = await self._call_mlflow(scope, request.as_mlflow(), "POST")
        if result[0] >= 500:
            raise HTTPError(500, "the model could not score the request")
        return result

    async def _call_mlflow(self, scope: Scope, body: bytes, method: str) -> tuple[int, bytes, str]:
        """Send a checked request to MLflow's app; return its status, body and content type."""
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        inner = scope | {"method": method, "query_string": b"", "headers": headers}
        sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        received: list[Message] = []

        async def receive() -> Message:
            if sent:
                return sent.pop()
            return await asyncio.Future()  # the client never disconnects

        async def send(message: Message) -> None:
            received.append(message)

        await self._scoring(inner, receive, send)
        types = [v.decode() for name, v in received[0]["headers"] if name == b"content-type"]
        content = b"".join(message.get("body", b"") for message in received[1:])
        return received[0]["status"], content, types[0]
