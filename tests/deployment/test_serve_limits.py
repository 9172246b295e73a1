"""The ASGI app, called in this process: request formats, limits, access, errors."""

import asyncio
import base64
import io
import json
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlflow
import pytest
from conftest import Registered
from hostile import BOMBS, SAVED, SECRET, Hostile, requests
from hypothesis import HealthCheck, given, settings
from mlflow.pyfunc import scoring_server
from PIL import Image

from nuswide.deployment.serve.limits import LimitedApp
from nuswide.deployment.serve.server import WorkerConfig
from nuswide.deployment.serve.settings import MIB, Settings
from nuswide.tagger import Tagger, decode_image

KEY = "a-key-of-sixteen-characters"
HOST = {"host": "127.0.0.1:5001"}
JSON = {"content-type": "application/json"}
JPEG = {"content-type": "image/jpeg"}


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


async def send_request(
    app: Any,
    headers: dict[str, str],
    parts: Iterable[bytes],
    method: str = "POST",
    path: str = "/invocations",
    query: str = "",
    before: Callable[[int], Awaitable[None]] | None = None,
) -> Response:
    """Send one request to an ASGI app. before: awaited before each part of the body."""
    todo, sent = list(parts), []
    if todo:
        headers = {"content-length": str(sum(map(len, todo)))} | headers

    async def receive() -> dict[str, Any]:
        if not todo:
            return await asyncio.Future()  # the client does not disconnect
        if before:
            await before(len(todo))
        part = todo.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(todo)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "scheme": "http", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 5001), "state": {},
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in (HOST | headers).items()],
    }  # fmt: skip
    await app(scope, receive, send)
    got = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return Response(sent[0]["status"], got, b"".join(m.get("body", b"") for m in sent[1:]))


@pytest.fixture(scope="module")
def parts(registered: Registered) -> Iterable[tuple[Any, Tagger]]:
    """MLflow's scoring app with the registered model, and the model's tagger."""
    mlflow.set_tracking_uri(registered.workspace.env["MLFLOW_TRACKING_URI"])
    yield (
        scoring_server.init(mlflow.pyfunc.load_model("models:/small@champion")),
        Tagger.load(registered.folder / "artifacts" / "bundle"),
    )
    mlflow.set_tracking_uri(None)


def create_app(
    registered: Registered, key: str | None = None, log: Any = None, **limits: Any
) -> LimitedApp:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", log or io.StringIO())
        return WorkerConfig(registered.folder, "small", "1", Settings(**limits), key).app()


@pytest.fixture(scope="module")
def app(registered: Registered) -> LimitedApp:
    return create_app(registered, body_mib=2, pictures=3, pixels=1_000_000, body_s=2)


def ask(app: Any, headers: dict[str, str], *parts: bytes, **more: Any) -> Response:
    return asyncio.run(send_request(app, headers, parts, **more))


def photo(level: int = 90, size: tuple[int, int] = (50, 40), form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda v: (v + level) % 256).save(file, form)
    return file.getvalue()


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def as_json(*images: Any, **params: Any) -> bytes:
    return json.dumps({"inputs": {"image": list(images)}, "params": params}).encode()


def as_form(*files: bytes, **fields: str) -> bytes:
    heads = [("image", '; filename="a.jpg"', file) for file in files]
    heads += [(name, "", value.encode()) for name, value in fields.items()]
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value
        for name, more, value in heads
    ]
    return b"\r\n".join([*parts, b"--B--\r\n"])


FORM = {"content-type": "multipart/form-data; boundary=B"}


def scores_of(tagger: Tagger, content: bytes) -> dict[str, float]:
    image = decode_image(io.BytesIO(content), *tagger.preprocessing)
    return dict(zip(tagger.labels, tagger.score(image[None])[0].tolist(), strict=True))


# Request formats


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_json_a_raw_body_and_a_form_get_the_same_exact_scores(
    app: LimitedApp, parts: tuple[Any, Tagger], form: str
) -> None:
    content, (mlflows, tagger) = photo(form=form), parts
    body = as_json(as_text(content), all_scores=True)
    expected = ask(mlflows, JSON, body).content
    assert expected["predictions"][0]["all_scores"] == scores_of(tagger, content)
    kind = {"content-type": f"image/{form.lower()}"}
    answers = [
        ask(app, JSON, body),
        ask(app, kind, content, query="all_scores=true"),
        ask(app, FORM, as_form(content, all_scores="true")),
        ask(app, FORM, as_form(content), query="all_scores=true"),
    ]
    assert [a.status for a in answers] == [200] * 4
    assert [a.content for a in answers] == [expected] * 4


TABLES: list[Callable[[list[str]], Any]] = [
    lambda rows: {"inputs": {"image": rows}},
    lambda rows: {"inputs": rows},
    lambda rows: {"instances": rows},
    lambda rows: {"instances": [{"image": row} for row in rows]},
    lambda rows: {"dataframe_records": [{"image": row, "more": 1} for row in rows]},
    lambda rows: {"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}},
    lambda rows: {
        "dataframe_split": {
            "columns": ["n", "image"],
            "data": [[0, r] for r in rows],
            "index": [7, 8],
        }
    },
]


@pytest.mark.parametrize("table", TABLES)
def test_every_json_form_of_mlflow_gets_mlflows_answer(
    app: LimitedApp, parts: tuple[Any, Tagger], table: Callable[[list[str]], Any]
) -> None:
    rows = [as_text(photo(10)), "data:image/jpeg;base64," + as_text(photo(200))]
    body = json.dumps(table(rows) | {"params": {"threshold": 0.1, "top_k": 3}}).encode()
    answer = ask(app, JSON, body)
    assert answer.status == 200, answer.body
    assert answer.content == ask(parts[0], JSON, body).content
    assert [len(row["labels"]) for row in answer.content["predictions"]] == [3, 3]


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_ping_health_and_version_answer_as_mlflows(
    app: LimitedApp, parts: tuple[Any, Tagger], path: str
) -> None:
    ours, theirs = (ask(one, {}, method="GET", path=path) for one in (app, parts[0]))
    assert (ours.status, ours.body) == (theirs.status, theirs.body) == (200, theirs.body)


def test_get_model_lists_labels_with_their_thresholds(app: LimitedApp) -> None:
    card = ask(app, {}, method="GET", path="/model").content
    assert (card["name"], card["version"], card["image_size_px"]) == ("small", "1", 32)
    assert {"label": "plants & trees", "threshold": 0.55} in card["labels"]


# Errors and limits


def refused(answer: Response, status: int, words: str) -> Response:
    assert answer.status == status, answer
    assert words in answer.content["message"] and answer.content["error_code"]
    assert SECRET not in answer.body.decode()
    return answer


@pytest.mark.parametrize(
    ("status", "words", "headers", "body", "query"),
    [
        (400, "not valid JSON", JSON, b"{" + SECRET.encode(), ""),
        (400, "not valid JSON", JSON, b"[" * 9_999, ""),
        (400, "too many values", JSON, b"[" * 10_001, ""),
        (400, "one of inputs", JSON, b"[1]", ""),
        (400, "one of inputs", JSON, b'{"inputs": [], "instances": []}', ""),
        (400, "another kind", JSON, b'{"inputs": [""], "messages": []}', ""),
        (400, "row 1: image must be a base64 text", JSON, as_json("", None), ""),
        (400, "row 0: image must be a base64 text", JSON, as_json({SECRET: SECRET}), ""),
        (400, "row 0: image must be a base64 text or", JSON, as_json(SECRET + "!"), ""),
        (400, "row 1: image is not", JSON, as_json(as_text(photo()), as_text(b"x")), ""),
        (400, "no image", JSON, as_json(), ""),
        (400, "no image", FORM, as_form(threshold="0.5"), ""),
        (400, "damaged or incomplete", FORM, as_form(photo())[:-9], ""),
        (400, "damaged", {"content-type": "multipart/form-data"}, as_form(photo()), ""),
        (400, "unknown params", JSON, as_json("", **{SECRET: 1}), ""),
        (400, "unknown params", JPEG, photo(), "treshold=0.5"),
        (400, "threshold must be", JSON, as_json("", threshold=SECRET), ""),
        (400, "threshold must be", JPEG, photo(), "threshold=nan"),
        (400, "top_k must be", JSON, as_json("", top_k=True), ""),
        (400, "top_k must be", FORM, as_form(photo(), top_k="-1"), ""),
        (400, "all_scores must be", JPEG, photo(), f"all_scores={SECRET}"),
        (400, "not a readable picture", JPEG, b"", ""),
        (400, "not a readable picture", JPEG, photo()[:-200], ""),
        (400, "form that is not served", JPEG, SAVED["EPS"], ""),
        (400, "more than 1000000 pixels", JPEG, BOMBS[0], ""),
        (413, "3 images", JSON, as_json(*[""] * 4), ""),
        (413, "3 images", FORM, as_form(*[b"x"] * 5), ""),
        (415, "send application/json", {"content-type": "text/csv"}, b"image\nx", ""),
        (415, "send application/json", {"content-type": SECRET}, b"x", ""),
        (415, "send application/json", {}, b"x", ""),
        (415, "UTF-8", {"content-type": "application/json; charset=latin-1"}, b"{}", ""),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_error_message_does_not_repeat_the_input(
    app: LimitedApp, status: int, words: str, headers: dict[str, str], body: bytes, query: str
) -> None:
    refused(ask(app, headers, body, query=query), status, words)


def test_other_paths_and_methods_are_refused(app: LimitedApp) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", f"/{SECRET}", "/page/../page.js"):
        refused(ask(app, {}, method="GET", path=path), 404, "not found")
    answer = refused(ask(app, {}, method="GET"), 405, "use POST")
    assert answer.headers["allow"] == "POST"
    refused(ask(app, JPEG, photo(), path="/ping"), 405, "use GET")


@pytest.mark.parametrize("length", [str(2 * MIB + 1), "9" * 30])
def test_a_body_declared_too_large_is_refused_before_it_is_read(
    app: LimitedApp, length: str
) -> None:
    answer = ask(app, JPEG | {"content-length": length, "expect": "100-continue"}, b"never read")
    assert refused(answer, 413, "2 MiB").headers["connection"] == "close"


def test_a_body_that_grows_too_large_is_refused(app: LimitedApp) -> None:
    chunked = JPEG | {"transfer-encoding": "chunked", "content-length": "0"}
    refused(ask(app, chunked, *[bytes(MIB)] * 3), 413, "2 MiB")
    assert ask(app, JPEG, photo()).status == 200


def test_bodies_in_memory_are_limited(registered: Registered) -> None:
    app = create_app(registered, held_mib=0.001)
    answer = refused(ask(app, JPEG, bytes(600), bytes(600)), 503, "waiting")
    assert int(answer.headers["retry-after"]) >= 1
    assert ask(app, JPEG, photo(size=(8, 8))).status == 200  # the memory is released


def test_a_body_that_takes_too_long_is_refused(registered: Registered) -> None:
    async def wait(left: int) -> None:
        await asyncio.sleep(5 if left == 1 else 0)

    answer = ask(create_app(registered, body_s=0.05), JPEG, b"a", b"b", before=wait)
    assert refused(answer, 408, "0.05 s").headers["connection"] == "close"


class Slow:
    """Makes the tagger's network wait until goes_on is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.goes_on, self.begun, real = False, 0, Tagger.score

        def score(tagger: Tagger, images: Any) -> Any:
            self.begun += 1
            while not self.goes_on:
                time.sleep(0.005)
            return real(tagger, images)

        patch.setattr(Tagger, "score", score)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_request_beyond_the_queue_gets_503_with_retry_after(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(registered, concurrency=1, queue=2)
    slow = Slow(monkeypatch)

    async def scenario() -> list[Response]:
        first = [asyncio.create_task(send_request(app, JPEG, [photo(i)])) for i in range(3)]
        await until(lambda: slow.begun == 1 and app._queue._waiting == 2)
        fourth = await send_request(app, JPEG, [photo()])
        slow.goes_on = True
        return [fourth, *await asyncio.gather(*first)]

    fourth, *others = asyncio.run(scenario())
    assert int(refused(fourth, 503, "try again").headers["retry-after"]) >= 1
    assert [answer.status for answer in others] == [200] * 3


def test_a_request_past_its_deadline_gets_503_and_keeps_its_slot_until_it_ends(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(registered, concurrency=1, request_s=0.3)
    slow = Slow(monkeypatch)

    async def scenario() -> list[Response]:
        answers = [await send_request(app, JPEG, [photo()])]
        answers.append(
            await send_request(app, JPEG, [photo()])
        )  # waits for the slot until its deadline
        slow.goes_on = True
        await until(lambda: not app._queue._slots.locked())
        return [*answers, await send_request(app, JPEG, [photo()])]

    one, two, three = asyncio.run(scenario())
    refused(one, 503, "try again")
    refused(two, 503, "try again")
    assert slow.begun == 2 and three.status == 200


def test_a_client_that_disconnects_leaves_the_queue(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(registered, concurrency=1)
    slow = Slow(monkeypatch)

    async def scenario() -> None:
        first = asyncio.create_task(send_request(app, JPEG, [photo()]))
        await until(lambda: slow.begun == 1)
        messages = [{"type": "http.request", "body": photo()}, {"type": "http.disconnect"}]
        headers = HOST | JPEG | {"content-length": "9"}
        scope = {
            "type": "http", "method": "POST", "path": "/invocations", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        await app(scope, receive, send)
        assert app._queue._waiting == 0
        slow.goes_on = True
        assert (await first).status == 200

    asyncio.run(scenario())


def test_a_server_error_does_not_reveal_its_cause(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(registered)

    def fail(tagger: Tagger, images: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Tagger, "score", fail)
    answer = refused(ask(app, JPEG, photo()), 500, "could not score")
    assert "Traceback" not in answer.body.decode()


def test_mlflows_own_server_gets_no_error_of_the_model_but_ours(
    parts: tuple[Any, Tagger], registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = mlflow.pyfunc.load_model(str(registered.folder))
    for error, status in ((ValueError(SECRET), 500), (mlflow.MlflowException(SECRET), 500)):

        def fail(images: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(loaded.unwrap_python_model().tagger, "score", fail)
        image = as_text(photo())
        answer = ask(scoring_server.init(loaded), JSON, as_json(image))
        refused(answer, status, "the model failed")
        assert "Traceback" not in answer.body.decode() and image[:20] not in answer.body.decode()


# Access


@pytest.mark.parametrize(
    ("host", "status"),
    {
        "127.0.0.1": 200, "127.0.0.1:5001": 200, "localhost:1": 200, "[::1]:5001": 200,
        "10.1.2.3": 200, "LocalHost": 200, "tagger.example:80": 200, "evil.example": 421,
        "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "": 421, "[": 421,
        "a@localhost": 200, "localhost@evil.example": 421,
    }.items(),
)  # fmt: skip
def test_only_its_own_names_and_addresses_reach_the_server(
    registered: Registered, host: str, status: int
) -> None:
    app = create_app(registered, allowed_hosts="tagger.example, other.example")
    assert ask(app, JPEG | {"host": host}, photo()).status == status
    assert ask(app, {"host": host}, method="GET", path="/").status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    {"http://127.0.0.1:5001": 200, "https://127.0.0.1:5001": 200, "http://127.0.0.1:9": 403,
     "null": 403, "http://evil.example": 403, "": 403, "http://[": 403}.items(),
)  # fmt: skip
def test_a_page_of_another_site_gets_403(app: LimitedApp, origin: str, status: int) -> None:
    assert ask(app, JPEG | {"origin": origin}, photo()).status == status


def test_a_configured_key_is_required(registered: Registered) -> None:
    app = create_app(registered, key=KEY)
    for wrong in ("", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer é"):
        answer = ask(app, JPEG | {"authorization": wrong}, photo())
        assert refused(answer, 401, "Bearer KEY").headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/model"):
            assert ask(app, {"authorization": wrong}, method="GET", path=path).status == 401
    for path in ("/", "/ping", "/page.js"):
        assert ask(app, {}, method="GET", path=path).status == 200
    assert ask(app, JPEG | {"authorization": f"Bearer {KEY}"}, photo()).status == 200


# Log, metrics, page


def test_the_log_has_an_object_a_request_without_pictures_keys_or_queries(
    registered: Registered,
) -> None:
    log = io.StringIO()
    app = create_app(registered, key=KEY, log=log)
    headers = JPEG | {"authorization": f"Bearer {KEY}", "x-more": SECRET}
    answer = ask(app, headers, photo(), query="threshold=0.125")
    ask(app, JSON, as_json(SECRET), query=SECRET)
    ask(app, {}, method="GET", path=f"/{SECRET}\n")
    first, second, third = map(json.loads, log.getvalue().splitlines())
    assert first["id"] == answer.headers["x-request-id"]
    assert (first["status"], first["pictures"], first["bytes_in"]) == (200, 1, len(photo()))
    assert (second["status"], third["status"], third["path"]) == (401, 404, "other")
    for kept in (KEY, SECRET, "0.125", as_text(photo())[:40]):
        assert kept not in log.getvalue()


def test_the_metrics_count_requests_and_pictures(registered: Registered) -> None:
    app = create_app(registered)
    ask(app, JSON, as_json(as_text(photo()), as_text(photo(7))))
    ask(app, JPEG, b"no picture")
    text = ask(app, {}, method="GET", path="/metrics").body.decode()
    assert 'nuswide_requests_total{path="/invocations",status="200"} 1.0' in text
    assert 'nuswide_requests_total{path="/invocations",status="400"} 1.0' in text
    assert "nuswide_pictures_total 2.0" in text
    for gauge in ("waiting", "running", "held_bytes"):
        assert f"nuswide_{gauge} 0.0" in text


def test_every_response_has_the_security_headers(app: LimitedApp) -> None:
    for answer in (
        ask(app, {}, method="GET", path="/"),
        ask(app, JPEG, b"x"),
        ask(app, {}, method="GET", path="/nothing"),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_the_page_has_no_outside_resource_and_no_inline_code(app: LimitedApp) -> None:
    page, script, style = (
        ask(app, {}, method="GET", path=path).body.decode()
        for path in ("/", "/page.js", "/page.css")
    )
    for text in (page, script, style):
        assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert "<style" not in page and " style=" not in page and " on" + "click" not in page
    assert "innerHTML" not in script and "eval(" not in script


# Random requests

PHOTO = photo(33)


@pytest.mark.slow
@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(request=requests())
def test_no_request_breaks_the_server_or_comes_back_in_its_answer(
    app: LimitedApp, parts: tuple[Any, Tagger], request: Hostile
) -> None:
    headers = {} if request.content_type is None else {"content-type": request.content_type}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged images
        answer = ask(
            app, headers, request.body, query=request.query.encode().decode("latin-1"),
            method=request.method, path=request.path,
        )  # fmt: skip
    assert answer.status < 500, (request, answer)
    assert SECRET not in answer.body.decode() and SECRET not in str(answer.headers)
    sound = ask(app, JPEG, PHOTO, query="all_scores=true")
    assert sound.content["predictions"][0]["all_scores"] == scores_of(parts[1], PHOTO)
