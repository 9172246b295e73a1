"""The gate before MLflow's scoring app: who may ask, how much, for how long, in which order.

Owns routes, checks, limits and the queue. Knows nothing of sockets and processes.

    app = Gate(scoring_server.init(pyfunc), card, Settings(), key=None, telemetry=Telemetry(None))
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from pathlib import Path
from typing import Any

from nuswide.deployment.serve.asgi import Answer, App, Message, Receive, Scope, Send
from nuswide.deployment.serve.errors import Gone, Refusal
from nuswide.deployment.serve.model import DEADLINE, places_of
from nuswide.deployment.serve.origin import check_host, check_origin
from nuswide.deployment.serve.queue import Turns
from nuswide.deployment.serve.requests import TagRequest, check_content_type, read_request
from nuswide.deployment.serve.settings import MIB, Settings
from nuswide.deployment.serve.telemetry import Telemetry, Visit

PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_OF_MLFLOW = ("/ping", "/health", "/version")  # its answers are no secret
_OWN = ("/metrics", "/model")
_SCORING = "/invocations"
_PATHS = {*_FILES, *_OF_MLFLOW, *_OWN, _SCORING}
log = logging.getLogger(__name__)


class Gate:
    """The ASGI app of one worker. card: what GET /model tells. key: what callers must give."""

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
        self._turns = Turns(settings, telemetry)
        self._held_bytes = 0
        self._files = {path: ((PAGE / name).read_bytes(), t) for path, (name, t) in _FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it holds, and tell of it."""
        path = scope["path"] if scope["path"] in _PATHS else "other"
        client = (scope.get("client") or ("",))[0]
        visit = Visit(scope["method"] if len(scope["method"]) < 10 else "other", path, client)
        answer = Answer(scope, receive, send, visit)
        try:
            await self._answer(scope, receive, answer, visit)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except Gone:
            pass
        except Exception as error:
            log.error("%s\n%s", type(error).__name__, places_of(error))
            await answer.refuse(Refusal(500, "the server failed"))
        finally:
            self._telemetry.record(visit)

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer, visit: Visit) -> None:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        check_host(headers.get("host", ""), self._settings.host_names)
        if visit.path == "other":
            raise Refusal(404, "there is nothing here; send pictures to /invocations")
        allowed = ("POST",) if visit.path == _SCORING else ("GET", "HEAD")
        if scope["method"] not in allowed:
            raise Refusal(405, f"use {allowed[0]}", allow=", ".join(allowed))
        if visit.path in self._files:
            content, content_type = self._files[visit.path]
            return await answer.send(200, content, content_type)
        if visit.path in _OF_MLFLOW:
            return await answer.send(*await self._ask_mlflow(scope, b"", "GET"))
        self._check_key(headers)
        if visit.path == "/metrics":
            text = self._telemetry.exposition()
            return await answer.send(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if visit.path == "/model":
            return await answer.send(200, self._card)
        check_origin(headers)
        await self._invoke(scope, headers, receive, answer, visit)

    def _check_key(self, headers: dict[str, str]) -> None:
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
        if not (hmac.compare_digest(digest, self._key) and scheme.lower() == "bearer"):
            raise Refusal(
                401, "give the key as the header Authorization: Bearer KEY",
                www_authenticate="Bearer",
            )  # fmt: skip

    # A request for scores

    async def _invoke(
        self,
        scope: Scope,
        headers: dict[str, str],
        receive: Receive,
        answer: Answer,
        visit: Visit,
    ) -> None:
        content_type = headers.get("content-type", "")
        check_content_type(content_type)
        declared = headers.get("content-length", "0")
        if len(declared) > 18 or int(declared) > self._settings.body_mib * MIB:
            raise self._too_large()
        self._turns.check_room()
        try:
            body = await self._receive(receive, answer, visit)
            deadline = time.monotonic() + self._settings.request_s
            visit.waited_s = await self._turns.take(receive, deadline)
            work = asyncio.create_task(self._score(scope, body, content_type, deadline, visit))
            work.add_done_callback(self._turns.end)
            done, _ = await asyncio.wait({work}, timeout=deadline - time.monotonic())
            if not done:
                raise self._turns.too_busy()
            await answer.send(*work.result())
        finally:
            self._held_bytes -= visit.bytes_in
            self._telemetry.held_bytes.set(self._held_bytes)

    async def _receive(self, receive: Receive, answer: Answer, visit: Visit) -> bytes:
        """Receive a body, bounded in bytes and seconds."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._settings.body_s):
                while not answer.body_is_read:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    answer.body_is_read = not message.get("more_body", False)
                    parts.append(message.get("body", b""))
                    self._hold(len(parts[-1]), visit)
        except TimeoutError:
            raise Refusal(408, f"the body took longer than {self._settings.body_s:g} s") from None
        visit.received_s = time.perf_counter() - visit.begun
        return b"".join(parts)

    def _hold(self, n_bytes: int, visit: Visit) -> None:
        visit.bytes_in += n_bytes
        self._held_bytes += n_bytes
        self._telemetry.held_bytes.set(self._held_bytes)
        if visit.bytes_in > self._settings.body_mib * MIB:
            raise self._too_large()
        if self._held_bytes > self._settings.held_mib * MIB:
            raise self._turns.too_busy()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._settings.body_mib:g} MiB")

    async def _score(
        self, scope: Scope, body: bytes, content_type: str, deadline: float, visit: Visit
    ) -> tuple[int, bytes, str]:
        DEADLINE.set(deadline + 1)  # by then the caller has been told
        request: TagRequest = await asyncio.to_thread(
            read_request, body, content_type, scope["query_string"],
            max_pictures=self._settings.pictures,
        )  # fmt: skip
        visit.pictures = len(request.pictures)
        result = await self._ask_mlflow(scope, request.as_mlflow(), "POST")
        if result[0] >= 500:
            raise Refusal(500, "the model could not score the request")
        return result

    async def _ask_mlflow(self, scope: Scope, body: bytes, method: str) -> tuple[int, bytes, str]:
        """Put a sound request to MLflow's app; its status, body and content type."""
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        inner = scope | {"method": method, "query_string": b"", "headers": headers}
        sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        got: list[Message] = []

        async def receive() -> Message:
            if sent:
                return sent.pop()
            return await asyncio.Future()  # nobody hangs up

        async def send(message: Message) -> None:
            got.append(message)

        await self._scoring(inner, receive, send)
        types = [v.decode() for name, v in got[0]["headers"] if name == b"content-type"]
        content = b"".join(message.get("body", b"") for message in got[1:])
        return got[0]["status"], content, types[0]
