"""The forms of a request: JSON as MLflow takes it, one picture, or a multipart form.

Owns what may be asked, and checks it before MLflow sees it: its own errors would repeat the input,
and some inputs would break it. Decodes no picture.

    request = read_request(body, "image/jpeg", b"top_k=5", max_pictures=32)
    request.as_mlflow()  # a body for MLflow's /invocations
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from nuswide.deployment.serve.errors import Refusal
from nuswide.tagger import BadRequest, check_params

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
IMAGE_TYPES = frozenset(
    f"image/{kind}" for kind in ("avif", "bmp", "gif", "jpeg", "png", "tiff", "webp")
)
PARAMS = ("threshold", "top_k", "all_scores")
_INT32 = 2**31 - 1
_MAX_VALUES = 10_000  # of a JSON text: each takes up to thirty times its length in memory
_FORMS = ("inputs", "instances", "dataframe_records", "dataframe_split")
# Keys by which MLflow takes a request for one to a language model.
_FOREIGN = frozenset({"messages", "prompt", "input", "signature_name"})


@dataclass(frozen=True)
class TagRequest:
    """What is asked: pictures as base64 texts, and the params of the model."""

    pictures: list[str]
    params: dict[str, Any]

    def as_mlflow(self) -> bytes:
        """A body for MLflow's /invocations, of type application/json."""
        rows = [[picture] for picture in self.pictures]
        table = {"columns": ["image"], "data": rows}
        return json.dumps({"dataframe_split": table, "params": self.params}).encode()


def check_content_type(content_type: str) -> str:
    """The media type of a request. Raises Refusal 415 if it is none that is taken."""
    kind, options = parse_options_header(content_type)
    media_type = kind.decode("latin-1")
    if media_type not in {JSON_TYPE, FORM_TYPE, *IMAGE_TYPES}:
        raise Refusal(
            415, f"send {JSON_TYPE}, {FORM_TYPE} or a picture as " + ", ".join(sorted(IMAGE_TYPES))
        )
    if media_type == JSON_TYPE and options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise Refusal(415, "JSON must be UTF-8")
    return media_type


def read_request(body: bytes, content_type: str, query: bytes, *, max_pictures: int) -> TagRequest:
    """Read a body of one of the taken types. Raises Refusal if anything about it is wrong."""
    media_type = check_content_type(content_type)
    if media_type == JSON_TYPE:
        pictures, params = _read_json(body)
    elif media_type == FORM_TYPE:
        files, params = _read_form(body, content_type, max_pictures)
        pictures = [base64.b64encode(file).decode() for file in files]
    else:
        pictures, params = [base64.b64encode(body).decode()], {}
    params |= _read_texts(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    if not pictures:
        raise Refusal(400, "there is no picture in the request")
    if len(pictures) > max_pictures:
        raise Refusal(413, f"a request may hold {max_pictures} pictures")
    try:
        check_params(params)
    except BadRequest as error:
        raise Refusal(400, error.message) from None
    given = {name: value for name, value in params.items() if value is not None}
    if "top_k" in given:
        given["top_k"] = min(given["top_k"], _INT32)
    return TagRequest(pictures, given)


def _read_json(body: bytes) -> tuple[list[str], dict[str, Any]]:
    if sum(map(body.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise Refusal(400, "the JSON holds too many values")
    try:
        content = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not valid JSON") from None
    if not isinstance(content, dict) or sum(form in content for form in _FORMS) != 1:
        raise Refusal(400, "the JSON must be an object with one of " + ", ".join(_FORMS))
    if _FOREIGN & content.keys():
        raise Refusal(400, "the JSON holds a key of another kind of model")
    params = content.get("params")
    if not isinstance(params, dict | None):
        raise Refusal(400, "params must be an object")
    (form,) = (form for form in _FORMS if form in content)
    values = _rows_of_split(content[form]) if form.endswith("split") else _rows_of(content[form])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise Refusal(400, f"row {row}: image must be a base64 text")
    return values, _known(params or {})


def _rows_of(content: Any) -> list[Any]:
    """The pictures of a list of texts or objects, or of an object of lists."""
    if isinstance(content, dict) and "image" in content:
        pictures = content["image"]
        return pictures if isinstance(pictures, list) else [pictures]
    if isinstance(content, list):
        return [row.get("image") if isinstance(row, dict) else row for row in content]
    raise Refusal(400, "the pictures must be a list, or an object with the key image")


def _rows_of_split(content: Any) -> list[Any]:
    columns = content.get("columns") if isinstance(content, dict) else None
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(columns, list) or not isinstance(rows, list) or columns.count("image") != 1:
        raise Refusal(400, "dataframe_split must have columns, one of them image, and data")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise Refusal(400, "each row of dataframe_split must have a value for each column")
    return [row[columns.index("image")] for row in rows]


def _known(params: dict[str, Any]) -> dict[str, Any]:
    if set(params) - set(PARAMS):
        raise Refusal(400, "unknown params; known: " + ", ".join(PARAMS))
    return dict(params)


def _read_form(
    body: bytes, content_type: str, max_pictures: int
) -> tuple[list[bytes], dict[str, Any]]:
    """The files of a multipart form, whatever their names, and its other fields."""
    files: list[bytes] = []
    texts: list[tuple[str, str]] = []
    ended: list[bool] = []

    def on_file(file: File) -> None:
        if len(files) > max_pictures:
            raise Refusal(413, f"a request may hold {max_pictures} pictures")
        file.file_object.seek(0)
        files.append(file.file_object.read())

    def on_field(field: Field) -> None:
        if len(texts) > len(PARAMS):
            raise Refusal(400, "the form holds too many fields")
        name, value = field.field_name or b"", field.value or b""
        texts.append((name.decode("latin-1"), value.decode("latin-1")))

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # nothing is written to disk
    try:
        parser = FormParser(
            FORM_TYPE, on_field, on_file, lambda: ended.append(True), boundary, config=in_memory
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        ended.clear()
    if not ended:
        raise Refusal(400, "the multipart form is damaged or incomplete")
    return files, _read_texts(texts)


def _read_texts(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Params that came as text, converted; a text that can't be is left for check_params."""
    params = _known(dict(texts))
    for name, text in params.items():
        try:
            params[name] = _READERS[name](text.lower())
        except (ValueError, KeyError):
            continue
    return params


_READERS: dict[str, Callable[[str], Any]] = {
    "threshold": float,
    "top_k": int,
    "all_scores": {"true": True, "false": False}.__getitem__,
}
