"""What is an image, and its decoding into pixels or the reason why it is rejected, in both engines.

Files of a folder that are no images are skipped; images that cannot be decoded are rejected.
"""

import base64
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nuswide.tagger import PICTURE_ERRORS, SERVED_FORMATS, Preprocessing, decode_image

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm",
)  # fmt: skip
_FORMATS = sorted(SERVED_FORMATS | {"JPEG2000", "PPM"})  # of SUFFIXES
MAX_BYTES = 2**28  # a batch must fit in memory; larger files are rejected without reading them


def decode_file(source: str | bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Decode an image from its path or content as decode_image does, or return why it failed."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
            return "not a regular file"  # a pipe would block
        n_bytes = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        if n_bytes > MAX_BYTES:
            return f"{n_bytes} bytes are above {MAX_BYTES}"
        file: Path | BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        return decode_image(file, *preprocessing)
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return " ".join(str(error).split())  # in one line


def is_image(name: str, content: bytes | None = None) -> bool:
    """Return whether a file is an image: by one of SUFFIXES, else by the start of its content.

    content: None for that of the file of this name.
    """
    if name.lower().endswith(SUFFIXES):
        return True
    if content is None and not os.path.isfile(name):  # a pipe would block
        return False
    try:
        with Image.open(name if content is None else io.BytesIO(content), formats=_FORMATS):
            return True
    except PICTURE_ERRORS:
        return False


def as_lossless(image: NDArray[np.uint8]) -> str:
    """Encode pixels (3, S, S) without loss, as a base64 text that decodes to the same pixels."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, format="BMP")
    return base64.b64encode(file.getvalue()).decode()
