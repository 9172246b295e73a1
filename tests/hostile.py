"""Malicious and malformed requests, drawn by hypothesis; for tests and benchmarks."""

import base64
import io
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from PIL import Image

SECRET = "do-not-echo-7c1f"
Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class Hostile:
    """A request. pause_s: how long the sender waits between parts of the body."""

    content_type: str | None
    body: bytes
    query: str = ""
    method: str = "POST"
    path: str = "/invocations"
    pause_s: float = 0.0


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_zeros(width: int, height: int) -> bytes:
    """A small file that decompresses to an image of any size: a decompression bomb."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def claimed_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, without the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = chunk(
        b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))
    )  # and a compressed comment of 2 MB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IEND", b"")


def _saved() -> dict[str, bytes]:
    """A small image in every format that the installed Pillow can write."""
    Image.init()
    picture, found = Image.linear_gradient("L").resize((40, 30)), {}
    for form in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "P", "F"):
            file = io.BytesIO()
            try:
                picture.convert(mode).save(file, form)
            except Exception:  # noqa: BLE001 - some formats take other modes or need a handler
                continue
            found[form] = file.getvalue()
            break
    return found


SAVED = _saved()
BOMBS = (
    png_of_zeros(7000, 7000), png_of_zeros(20_000, 20), png_of_zeros(1, 60_000),
    claimed_png(7001, 7143), claimed_png(60_000, 60_000), claimed_png(2**31 - 1, 2**31 - 1),
    claimed_png(0, 5), png_of_zeros(1, 1),
)  # fmt: skip
EXTRA = (
    b"", b"\0", SECRET.encode(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP",
    SAVED["JPEG"] + b"PK\x03\x04" + SAVED["PNG"], SAVED["GIF"][:6] + SAVED["PNG"],
    b"#!/bin/sh\n" + SAVED["JPEG"], SAVED["BMP"][:30] + SAVED["TIFF"],
)  # fmt: skip


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """An image of any format, intact, damaged, truncated or joined to another; or no image."""
    content = draw(st.sampled_from([*SAVED.values(), *EXTRA, *BOMBS]))
    if len(content) > 50_000 or not content or draw(st.booleans()):
        return content
    damaged = bytearray(content)
    at = st.one_of(st.integers(0, min(64, len(content) - 1)), st.integers(0, len(content) - 1))
    for place, byte in draw(st.lists(st.tuples(at, st.integers(0, 255)), max_size=6)):
        damaged[place] = byte
    end = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    return bytes(damaged[:end]) + draw(st.sampled_from([b"", b"", *EXTRA]))


scalars: Strategy = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.just(SECRET), st.text(max_size=20),
    st.just(10**400), st.just("\ud800"), st.just("x" * 100_000),
)  # fmt: skip
rubbish: Strategy = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
base64s: Strategy = pictures().map(lambda content: base64.b64encode(content).decode())
images: Strategy = st.one_of(
    base64s,
    base64s,
    base64s.map(lambda text: "data:image/png;base64," + text),
    base64s.map(lambda text: text[:-1] + SECRET),
    rubbish,
    st.sampled_from(["data:text/html;base64,PGI+", "file:///etc/passwd", "http://127.0.0.1/"]),
)
params: Strategy = st.one_of(
    st.none(),
    rubbish,
    st.fixed_dictionaries(
        {},
        optional={
            "threshold": st.one_of(st.floats(0, 1), scalars, rubbish),
            "top_k": st.one_of(st.integers(0, 9), scalars),
            "all_scores": st.one_of(st.booleans(), scalars),
            SECRET: rubbish,
        },
    ),
)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """JSON of a known format with any content, or any JSON."""
    rows = draw(st.lists(images, max_size=3))
    content: Any = draw(
        st.sampled_from([
            {"inputs": {"image": rows}}, {"inputs": rows},
            {"instances": [{"image": r} for r in rows]},
            {"dataframe_records": [{"image": r, "x": 1} for r in rows]},
            {"dataframe_split": {"columns": ["image"], "data": [[r] for r in rows]}},
            {"dataframe_split": {"columns": rows, "data": rows, "index": rows}},
            {"inputs": rows, "instances": rows}, {"prompt": rows, "inputs": rows}, rows,
        ])
    )  # fmt: skip
    if isinstance(content, dict):
        key = draw(st.sampled_from([*content, "messages", "signature_name", SECRET]))
        if draw(st.integers(0, 4)) == 0:
            content = content | {key: draw(rubbish)}
        if draw(st.booleans()):
            content = content | {"params": draw(params)}
    return json.dumps(draw(st.one_of(st.just(content), st.just(content), rubbish))).encode()


texts: Strategy = st.sampled_from([
    b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b"[" * 9_000, b"[" * 200_000,
    b'{"inputs":' * 9_000,
    b"{" + b'"a":1,' * 100_000 + b"}", b'{"inputs": {"image": [' + b"0," * 4_000 + b"0]}}",
    b'{"inputs": [1e999, NaN, -Infinity]}', b'{"inputs": [' + b"9" * 10_000 + b"]}",
    b"\xef\xbb\xbf{}", '{"inputs": ["é"]}'.encode("utf-16"), SECRET.encode() * 1000,
    b'{"inputs": ["' + b"A" * 3_000_000 + b'"]}',
])  # fmt: skip


@st.composite
def form_bodies(draw: st.DrawFn) -> bytes:
    """A multipart form with the boundary B, valid or not."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(["image", "image", "threshold", "top_k", "all_scores", SECRET]))
        is_file = draw(st.booleans())
        file = f'; filename="../../{SECRET}.jpg"' if is_file else ""
        value = draw(pictures()) if is_file else str(draw(scalars)).encode("utf-8", "replace")
        extra = draw(
            st.sampled_from(["", "Content-Transfer-Encoding: base64\r\n", "X: y\r\n" * 20])
        )
        head = f'Content-Disposition: form-data; name="{name}"{file}\r\n{extra}\r\n'
        parts.append(b"--B\r\n" + head.encode() + value + b"\r\n")
    body = b"".join(parts) + draw(st.sampled_from([b"--B--\r\n", b"--B--", b"", b"--", b"--B\r\n"]))
    return body[: draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))]


TYPES = (
    "application/json", "application/json; charset=utf-8", "application/json; charset=utf-16",
    "multipart/form-data; boundary=B", "multipart/form-data", "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "B" * 400, "image/jpeg", "image/png", "image/webp",
    "image/svg+xml", "text/csv", "application/vnd.apache.parquet", "text/plain", "", ";;;=",
    'image/jpeg; a="', SECRET, "application/x-www-form-urlencoded", None,
)  # fmt: skip
QUERIES = (
    "", "", "", "threshold=0", "all_scores=true", "top_k=2", "top_k=-1", "threshold=nan", "a=b&c",
    "threshold=" + "9" * 5000, "%ff=%00", "top_k=1&top_k=2", "all_scores=" + SECRET, "&&&==",
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn, slow: bool = False) -> Hostile:
    """Any request."""
    kinds = {
        "application/json": st.one_of(json_bodies(), json_bodies(), texts),
        "multipart/form-data; boundary=B": form_bodies(),
        "image/jpeg": pictures(),
        None: st.one_of(pictures(), texts, json_bodies(), form_bodies()),
    }
    kind = draw(st.sampled_from(list(kinds)))
    content_type = kind or draw(st.sampled_from(TYPES))
    odd = draw(st.integers(0, 19)) == 0
    return Hostile(
        content_type=content_type,
        body=draw(kinds[kind]),
        query=draw(st.sampled_from(QUERIES)),
        method=draw(st.sampled_from(["PUT", "GET", "DELETE", "OPTIONS"])) if odd else "POST",
        path=draw(st.sampled_from(["/", "/docs", "/../x", "/ping", "/model"]))
        if odd
        else "/invocations",
        pause_s=0.05 if slow and draw(st.integers(0, 29)) == 0 else 0.0,
    )
