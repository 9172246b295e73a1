"""Request bodies: JSON in MLflow's formats, one image, or a multipart form.

Every request is checked before MLflow gets it: MLflow's error messages would repeat the input, and
some inputs would crash it. Images are not decoded here.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from nuswide.core.wording import counted
from nuswide.deployment.serve.errors import HTTPError
from nuswide.tagger import BadRequest, check_params

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
IMAGE_TYPES = frozenset(
    f"image/{kind}" for kind in ("avif", "bmp", "gif", "jpeg", "png", "tiff", "webp")
)
PARAMS = ("threshold", "top_k", "all_scores")
_INT32 = 2**31 - 1
_MAX_VALUES = 10_000  # in JSON; a value takes up to thirty times its length in memory
_JSON_FORMATS = ("inputs", "instances", "dataframe_records", "dataframe_split")
# MLflow takes a request with one of these keys for one to a language model.
_LLM_KEYS = frozenset({"messages", "prompt", "input", "signature_name"})


@dataclass(frozen=True)
class TagRequest:
    """A checked request: images as base64 texts, and the model's parameters."""

    images: list[str]
    params: dict[str, Any]

    def as_mlflow(self) -> bytes:
        """Return the JSON body for MLflow's /invocations."""
        rows = [[image] for image in self.images]
        table = {"columns": ["image"], "data": rows}
        return json.dumps({"dataframe_split": table, "params": self.params}).encode()


def check_content_type(content_type: str) -> str:
    """Return the media type of a request. Raises HTTPError 415 if it is not supported."""
    kind, options = parse_options_header(content_type)
    media_type = kind.decode("latin-1")
    if media_type not in {JSON_TYPE, FORM_TYPE, *IMAGE_TYPES}:
        raise HTTPError(
            415, f"send {JSON_TYPE}, {FORM_TYPE} or an image as " + ", ".join(sorted(IMAGE_TYPES))
        )
    if media_type == JSON_TYPE and options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise HTTPError(415, "JSON must be UTF-8")
    return media_type


def read_request(body: bytes, content_type: str, query: bytes, *, max_images: int) -> TagRequest:
    """Parse a body of a supported content type. Raises HTTPError if it is invalid."""
    media_type = check_content_type(content_type)
    if media_type == JSON_TYPE:
        images, params = _read_json(body)
    elif media_type == FORM_TYPE:
        files, params = _read_form(body, content_type, max_images)
        images = [base64.b64encode(file).decode() for file in files]
    else:
        images, params = [base64.b64encode(body).decode()], {}
    params |= _parse_params(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    if not images:
        raise HTTPError(400, "the request contains no image")
    if len(images) > max_images:
        raise HTTPError(413, f"a request may contain at most {counted(max_images, 'image')}")
    try:
        check_params(params)
    except BadRequest as error:
        raise HTTPError(400, error.message) from None
    given = {name: value for name, value in params.items() if value is not None}
    if "top_k" in given:
        given["top_k"] = min(given["top_k"], _INT32)
    return TagRequest(images, given)


def _read_json(body: bytes) -> tuple[list[str], dict[str, Any]]:
    if sum(map(body.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise HTTPError(400, "the JSON contains too many values")
    try:
        content = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise HTTPError(400, "the body is not valid JSON") from None
    if not isinstance(content, dict) or sum(key in content for key in _JSON_FORMATS) != 1:
        raise HTTPError(
            400, "the JSON must be an object with exactly one of " + ", ".join(_JSON_FORMATS)
        )
    if _LLM_KEYS & content.keys():
        raise HTTPError(400, "the JSON contains a key for another kind of model")
    params = content.get("params")
    if not isinstance(params, dict | None):
        raise HTTPError(400, "params must be an object")
    (key,) = (key for key in _JSON_FORMATS if key in content)
    values = _rows_of_split(content[key]) if key.endswith("split") else _rows_of(content[key])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise HTTPError(400, f"row {row}: image must be a base64 text")
    return values, _check_names(params or {})


def _rows_of(content: Any) -> list[Any]:
    """Return the images of a list of texts or objects, or of an object of lists."""
    if isinstance(content, dict) and "image" in content:
        images = content["image"]
        return images if isinstance(images, list) else [images]
    if isinstance(content, list):
        return [row.get("image") if isinstance(row, dict) else row for row in content]
    raise HTTPError(400, "the images must be a list, or an object with the key image")


def _rows_of_split(content: Any) -> list[Any]:
    columns = content.get("columns") if isinstance(content, dict) else None
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(columns, list) or not isinstance(rows, list) or columns.count("image") != 1:
        raise HTTPError(400, "dataframe_split must have data and columns, one of them image")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise HTTPError(400, "each row of dataframe_split must have a value for each column")
    return [row[columns.index("image")] for row in rows]


def _check_names(params: dict[str, Any]) -> dict[str, Any]:
    if set(params) - set(PARAMS):
        raise HTTPError(400, "unknown params; known are " + ", ".join(PARAMS))
    return dict(params)


def _read_form(
    body: bytes, content_type: str, max_images: int
) -> tuple[list[bytes], dict[str, Any]]:
    """Return the files of a multipart form, whatever their names, and its other fields."""
    files: list[bytes] = []
    texts: list[tuple[str, str]] = []
    ended: list[bool] = []

    def on_file(file: File) -> None:
        if len(files) > max_images:
            raise HTTPError(413, f"a request may contain at most {counted(max_images, 'image')}")
        file.file_object.seek(0)
        files.append(file.file_object.read())

    def on_field(field: Field) -> None:
        if len(texts) > len(PARAMS):
            raise HTTPError(400, "the form contains too many fields")
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
        raise HTTPError(400, "the multipart form is damaged or incomplete")
    return files, _parse_params(texts)


def _parse_params(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Convert parameters from text; what cannot be converted is left for check_params."""
    params = _check_names(dict(texts))
    for name, text in params.items():
        try:
            params[name] = _PARSERS[name](text.lower())
        except (ValueError, KeyError):
            continue
    return params


_PARSERS: dict[str, Callable[[str], Any]] = {
    "threshold": float,
    "top_k": int,
    "all_scores": {"true": True, "false": False}.__getitem__,
}
