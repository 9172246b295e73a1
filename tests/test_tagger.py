import base64
import io
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, features
from torchvision.transforms import functional as tvf

from nuswide import tagger
from nuswide.tagger import Preprocessing, Tagger, TaggerModel, decode_image

SIZE = 16
LABELS = ["dark", "bright", "even", "a sea"]
SECRET = "do-not-echo-7c1f"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    return io.BytesIO(file.getvalue())


def scene() -> Image.Image:
    """A picture whose four corners differ, so that no turn or mirror image equals another."""
    pixels = np.zeros((24, 36, 3), dtype=np.uint8)
    pixels[:12, :18] = (250, 10, 10)
    pixels[:12, 18:] = (10, 250, 10)
    pixels[12:, :18] = (10, 10, 250)
    pixels[12:, 18:] = (240, 240, 20)
    return Image.fromarray(pixels)


def forged_png(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


# decode_image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colours_survive_every_mode(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    expected = decode_image(encoded(scene()), SIZE)
    decoded = decode_image(encoded(scene().convert(mode), form), SIZE)
    assert decoded.dtype == np.uint8 and decoded.shape == (3, SIZE, SIZE)
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - expected).max() <= 60  # the palette has 256 web colours
    assert (decoded.argmax(axis=0) == expected.argmax(axis=0))[:, : SIZE // 2].all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (61, 40), (33, 200), (8, 9), (1, 20), (32, 32)])
def test_crop_equals_torchvisions_resize_and_center_crop(
    size: tuple[int, int], interpolation: str
) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    theirs = Compose([Resize(SIZE, tvf.InterpolationMode(interpolation)), CenterCrop(SIZE)])(image)
    ours = decode_image(encoded(image), SIZE, "crop", interpolation)
    assert (ours == np.asarray(theirs).transpose(2, 0, 1)).all()


def test_crop_of_a_long_image_resizes_no_more_than_twenty_squares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *rest: sizes.append(size) or resize(self, size, *rest),
    )
    line = Image.new("RGB", (90_000, 2), (5, 6, 7))
    decoded = decode_image(encoded(line), 512, "crop")
    assert (decoded.reshape(3, -1).T == (5, 6, 7)).all()
    assert sizes == [[20 * 512, 512]]


@pytest.mark.parametrize(
    ("size", "kept"),
    [((40, 20), np.s_[4:12, :]), ((20, 40), np.s_[:, 4:12]), ((900, 1), np.s_[7:8, :])],
)
def test_pad_keeps_the_whole_image_between_bars(
    size: tuple[int, int], kept: tuple[slice, slice]
) -> None:
    decoded = decode_image(
        encoded(Image.new("RGB", size, (200, 0, 9))), SIZE, "pad", fill=(1, 2, 3)
    )
    inside = np.zeros((SIZE, SIZE), bool)
    inside[kept] = True
    assert (decoded.transpose(1, 2, 0)[inside] == (200, 0, 9)).all()
    assert (decoded.transpose(1, 2, 0)[~inside] == (1, 2, 3)).all()


def test_a_square_is_the_same_however_it_is_fitted() -> None:
    image = encoded(scene().resize((SIZE + 8, SIZE + 8)))
    squashed, *others = (decode_image(image, SIZE, fit) for fit in ("squash", "crop", "pad"))
    assert all((other == squashed).all() for other in others)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_grey_pictures_come_out_grey(mode: str) -> None:
    grey = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 8, axis=0))
    decoded = decode_image(encoded(grey.resize((8, 8), Image.Resampling.NEAREST).convert(mode)), 8)
    assert (decoded[0] == decoded[1]).all() and (decoded[0] == decoded[2]).all()
    assert (decoded[0, :, :4] == 0).all() and (decoded[0, :, 4:] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_comes_out_on_white(mode: str) -> None:
    black = Image.new(mode, (8, 8), (0,) * (len(mode) - 1) + (0,))
    assert (decode_image(encoded(black), 8) == 255).all()
    half = Image.new(mode, (8, 8), (0,) * (len(mode) - 1) + (128,))
    assert np.abs(decode_image(encoded(half), 8).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_comes_out_white(form: str) -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.paste(1, (4, 0, 8, 8))
    decoded = decode_image(encoded(picture, form, transparency=0), 8)
    assert (decoded[:, :, :4] == 255).all()
    assert (decoded[:, :, 4:] == np.array([0, 0, 255])[:, None, None]).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "big-endian TIFF"])
def test_16_bits_are_scaled_to_8(form: str) -> None:
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    if form == "big-endian TIFF":
        picture = Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes())
    else:
        picture = Image.fromarray(ramp)
    decoded = decode_image(encoded(picture, form.split()[-1]), 8)
    assert (decoded[0] == decoded[1]).all() and (decoded[0] == decoded[2]).all()
    assert (decoded[0] == (ramp / 257).round()).all()


def test_16_bits_with_a_transparent_grey_decode() -> None:
    picture = Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16))
    assert (decode_image(encoded(picture, transparency=7), 8) == 100).all()


RAMP = np.arange(64).reshape(8, 8) * 4 + 3  # to 255


@pytest.mark.parametrize(
    ("levels", "form"),
    [
        ((RAMP / 255).astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP / 255).astype(np.float32), "PPM"),
        (RAMP.astype(np.int32), "TIFF"),
        ((RAMP * 257).astype(np.int32), "TIFF"),
        ((RAMP * 257).astype(np.int32), "PPM"),
    ],
    ids=["0 to 1", "0 to 255", "0 to 1, PFM", "8 of 32 bits", "16 of 32 bits", "PPM"],
)
def test_floats_and_32_bit_greys_are_scaled_by_their_range(levels: Any, form: str) -> None:
    assert (decode_image(encoded(Image.fromarray(levels), form), 8) == RAMP).all()


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.float32([[-0.5, 1]]), "float pixels are not within 0 to 1 or 0 to 255"),
        (np.float32([[0, 4095]]), "float pixels"),
        (np.float32([[0, np.nan]]), "float pixels"),
        (np.float32([[0, np.inf]]), "float pixels"),
        (np.int32([[0, 65536]]), "32-bit pixels are not within 0 to 255 or 0 to 65535"),
        (np.int32([[-1, 255]]), "32-bit pixels"),
    ],
    ids=str,
)
def test_pixels_of_an_unknown_range_are_refused_not_clipped(
    levels: Any, words: str, model: TaggerModel
) -> None:
    content = encoded(Image.fromarray(levels), "TIFF").getvalue()
    with pytest.raises(ValueError, match=words):
        decode_image(io.BytesIO(content), 8)
    with pytest.raises(MlflowException, match=f"row 0: image: its {words}"):
        predict(model, [base64_of(content)])


def test_why_an_image_cannot_be_decoded_is_the_same_each_time() -> None:
    with pytest.raises(ValueError, match="not a readable picture: cannot identify image file$"):
        decode_image(io.BytesIO(b"x"), 8)


def bare_tiff(bits: int, photometric: int, pixels: bytes) -> io.BytesIO:
    """A grey TIFF of two pixels in one row, uncompressed."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1,
            279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return io.BytesIO(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels)


@pytest.mark.parametrize(
    ("bits", "photometric", "pixels"),
    [
        (12, 1, b"\x00\x0f\xff"),
        (16, 1, b"\0\0\xff\xff"),
        (16, 0, b"\xff\xff\0\0"),
        (8, 0, b"\xff\0"),
    ],
    ids=["12 bits", "16 bits", "16 bits, white is 0", "8 bits, white is 0"],
)
def test_every_depth_of_a_grey_tiff_has_its_own_white(
    bits: int, photometric: int, pixels: bytes
) -> None:
    decoded = decode_image(bare_tiff(bits, photometric, pixels), 8)
    assert (decoded[:, :, 0] == 0).all() and (decoded[:, :, -1] == 255).all()


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    decoded = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 8)
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]


TURNED_BACK = {  # EXIF orientation -> how a camera lays an upright scene down
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_exif_orientation_is_undone(orientation: int) -> None:
    how = TURNED_BACK[orientation]
    laid_down = scene() if how is None else scene().transpose(how)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(laid_down, exif=exif), SIZE)
    assert (decoded == decode_image(encoded(scene()), SIZE)).all()


def test_shrinking_takes_the_mean_of_pixels_instead_of_picking_one() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    decoded = decode_image(encoded(Image.fromarray(board.astype(np.uint8))), 8)
    assert np.abs(decoded.astype(int) - 127).max() <= 2


def test_a_path_and_an_open_file_decode_alike(tmp_path: Path) -> None:
    path = tmp_path / "a photo.jpg"
    scene().save(path)
    with path.open("rb") as file:
        assert (decode_image(file, SIZE) == decode_image(str(path), SIZE)).all()


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "text": b"this is not a picture",
        "truncated JPEG": encoded(scene(), "JPEG").getvalue()[:-300],
        "truncated PNG": encoded(scene(), "PNG").getvalue()[:-30],
        "zero wide": forged_png(0, 10),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_sound_picture_raises_value_error(content: tuple[str, bytes]) -> None:
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(io.BytesIO(content[1]), SIZE)


def test_a_missing_file_or_a_folder_raises_value_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ValueError, match="not a readable picture"):
            decode_image(path, SIZE)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 14_000, 100_000, 2**31 - 1])
def test_a_header_that_claims_too_many_pixels_raises_value_error(side: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode_image(io.BytesIO(forged_png(side, side)), SIZE)


def test_the_limit_of_pixels_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagger, "MAX_PIXELS", 24 * 36)
    decode_image(encoded(scene()), SIZE)
    monkeypatch.setattr(tagger, "MAX_PIXELS", 24 * 36 - 1)
    with pytest.raises(ValueError, match=r"36x24 px is above 863 pixels"):
        decode_image(encoded(scene()), SIZE)


FORMS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "DDS", "SPIDER")
SOUND = {
    form: encoded(scene().convert("F") if form == "SPIDER" else scene(), form).getvalue()
    for form in FORMS
    if form != "AVIF" or features.check("avif")
}


@pytest.mark.parametrize(
    ("form", "at", "damage"),
    [
        ("AVIF", -60, b"\0" * 60),  # the coded pixels: RuntimeError
        ("DDS", 80, b"\0"),  # the flags of the pixel format, which are not all read: RuntimeError
        ("SPIDER", 104, b"\0\0\x80?"),  # the number in a stack, as a float: AttributeError
    ],
    ids=["AVIF", "DDS", "SPIDER"],
)
def test_what_pillow_raises_on_rarer_forms_is_a_value_error_too(
    form: str, at: int, damage: bytes
) -> None:
    if form not in SOUND:
        pytest.skip(f"needs a Pillow that reads {form}")
    content = bytearray(SOUND[form])
    start = at % len(content)
    content[start : start + len(damage)] = damage
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(io.BytesIO(bytes(content)), SIZE)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF and EXIF tags
@settings(max_examples=150, deadline=None, derandomize=True)
@given(form=st.sampled_from(sorted(SOUND)), data=st.data())
def test_a_damaged_picture_decodes_or_raises_value_error(form: str, data: st.DataObject) -> None:
    content = bytearray(SOUND[form])
    place = st.one_of(st.integers(0, 64), st.integers(0, len(content) - 1))
    for at, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=8)):
        content[at] = byte
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        decoded = decode_image(io.BytesIO(bytes(content[:end])), SIZE)
    except ValueError:
        return
    assert decoded.shape == (3, SIZE, SIZE) and decoded.dtype == np.uint8


# TaggerModel


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def flat(level: int) -> str:
    return base64_of(encoded(Image.new("RGB", (20, 10), (level,) * 3)).getvalue())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that scores a picture's mean m as 1 - m, m, 0.5 and 0.5."""
    folder = tmp_path_factory.mktemp("bundle")
    constants = {
        "weight": np.array([[-1, 1, 0, 0]], dtype=np.float32) / 255,
        "bias": np.array([1, 0, 0.5, 0.5], dtype=np.float32),
        "axes": np.array([1, 2, 3], dtype=np.int64),
        "column": np.array([-1, 1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"]),
        helper.make_node("Reshape", ["mean", "column"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weight", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(LABELS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    settings = {
        "labels": LABELS,
        "thresholds": [0.6] * 4,
        "image_size_px": SIZE,
        "config": {"seed": 0},
    }
    (folder / "tagger.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> TaggerModel:
    model = TaggerModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle)}))
    return model


def predict(model: TaggerModel, images: list[Any], **params: Any) -> list[list[Any]]:
    answer = model.predict(None, pd.DataFrame({"image": images}), params)
    assert list(answer.columns) == ["labels", "scores"]
    return answer.to_numpy().tolist()


def test_a_loaded_tagger_scores_a_batch(bundle: Path) -> None:
    loaded = Tagger.load(bundle)
    images = np.stack([np.full((3, SIZE, SIZE), level, np.uint8) for level in (0, 255)])
    assert loaded.score(images).tolist() == [[1, 0, 0.5, 0.5], [0, 1, 0.5, 0.5]]
    assert (loaded.labels, loaded.preprocessing) == (LABELS, Preprocessing(SIZE))
    assert loaded.thresholds.tolist() == [0.6] * 4


def test_predict_gives_labels_at_the_models_threshold(model: TaggerModel) -> None:
    assert predict(model, [flat(0), flat(255), flat(128)]) == [
        [["dark"], [1.0]],
        [["bright"], [1.0]],
        [[], []],
    ]


def test_predict_without_params_or_with_null_ones_uses_the_defaults(model: TaggerModel) -> None:
    rows = pd.DataFrame({"image": [flat(0)]})
    nulls = {"threshold": None, "top_k": None}
    for params in (None, {}, nulls):
        assert model.predict(None, rows, params)["labels"].tolist() == [["dark"]]


def test_threshold_is_inclusive_and_can_be_overridden(model: TaggerModel) -> None:
    assert predict(model, [flat(0)], threshold=0.5)[0][0] == ["dark", "even", "a sea"]
    assert predict(model, [flat(0)], threshold=1.0)[0][0] == ["dark"]


def test_threshold_0_gives_every_label_best_first(model: TaggerModel) -> None:
    labels, scores = predict(model, [flat(51)], threshold=0.0)[0]
    assert labels == ["dark", "even", "a sea", "bright"]  # equal scores stay in the labels' order
    assert scores == pytest.approx([0.8, 0.5, 0.5, 0.2])


@pytest.mark.parametrize("top_k", [0, 1, 2, 4, 100])
def test_top_k_keeps_the_best_and_0_keeps_all(model: TaggerModel, top_k: int) -> None:
    everything = ["dark", "even", "a sea", "bright"]
    labels, scores = predict(model, [flat(51)], threshold=0.0, top_k=top_k)[0]
    assert labels == everything[: top_k or None]
    assert scores == sorted(scores, reverse=True)


def test_top_k_counts_labels_that_reach_their_thresholds_only(bundle: Path) -> None:
    model = model_with(bundle, thresholds=[0.85, 0.1, 0.55, 0.6])
    # The best score, 0.8, is below its threshold; the lowest, 0.2, is above its own.
    assert predict(model, [flat(51)], top_k=1) == [[["bright"], [pytest.approx(0.2)]]]
    assert predict(model, [flat(51)]) == predict(model, [flat(51)], top_k=1)


def test_top_k_does_not_lift_the_threshold(model: TaggerModel) -> None:
    assert predict(model, [flat(0)], top_k=3)[0][0] == ["dark"]


@pytest.mark.parametrize(
    "params",
    [
        *({"threshold": wrong} for wrong in (-0.1, 1.1, float("nan"), float("inf"), True, SECRET)),
        *({"top_k": wrong} for wrong in (-1, 1.5, True, SECRET, [1])),
        *({"all_scores": wrong} for wrong in (1, 0.0, SECRET, [True])),
    ],
    ids=str,
)
def test_params_out_of_range_are_refused_by_name(
    model: TaggerModel, params: dict[str, Any]
) -> None:
    with pytest.raises(MlflowException, match=next(iter(params))) as caught:
        predict(model, [flat(0)], **params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert SECRET not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "image",
    {
        "not base64": f"{SECRET}!!",
        "wrong padding": "abc",
        "not ASCII": f"{SECRET} é",
        "null": None,
        "NaN": float("nan"),
        "a number": 7,
        "a list": [SECRET],
        "an object": {"b64": SECRET},
        "empty": "",
        "a text file": base64_of(SECRET.encode()),
        "bytes of a text": SECRET.encode(),
        "a truncated picture": base64_of(SOUND["JPEG"][:-300]),
        "too many pixels": base64_of(forged_png(2**20, 2**20)),
        "a few too many pixels": base64_of(forged_png(10_001, 10_001)),
        "PostScript": base64_of(encoded(scene(), "EPS").getvalue()),
        "a form that is not served": base64_of(encoded(scene(), "PPM").getvalue()),
        "a data URI of text": f"data:text/plain;base64,{flat(0)}",
        "a data URI without base64": f"data:image/png,{SECRET}",
        "a web address": f"http://127.0.0.1/{SECRET}.jpg",
        "a file": f"file:///{SECRET}",
    }.items(),
    ids=lambda item: item[0],
)
def test_an_unreadable_row_is_named_and_not_echoed(
    model: TaggerModel, image: tuple[str, Any]
) -> None:
    with pytest.raises(MlflowException) as caught:
        predict(model, [flat(0), image[1], flat(0)])
    message = str(caught.value)
    assert message.startswith("row 1: image ")
    assert SECRET not in message and base64_of(SECRET.encode()) not in message
    assert "\n" not in message and len(message) < 120
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: base64.encodebytes(content).decode(),  # 76 characters a line
        lambda content: base64_of(content) + "\n",
        lambda content: "\r\n".join(("", *base64_of(content))),
        lambda content: " data:image/png;base64,\n" + base64.encodebytes(content).decode(),
    ],
    ids=["lines", "a line break at the end", "CRLF", "a data URI in lines"],
)
def test_base64_may_have_line_breaks(model: TaggerModel, broken: Any) -> None:
    content = encoded(Image.new("RGB", (20, 10), (0, 0, 0))).getvalue()
    assert predict(model, [broken(content)]) == predict(model, [flat(0)])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.bytes_])
def test_an_image_may_be_given_as_its_bytes(model: TaggerModel, kind: Any) -> None:
    content = encoded(Image.new("RGB", (20, 10), (0, 0, 0))).getvalue()
    assert predict(model, [kind(content)]) == predict(model, [flat(0)])


def test_base64_with_stray_characters_is_refused_though_the_rest_is_a_picture(
    model: TaggerModel,
) -> None:
    stray = f"{flat(0)[:40]}!{flat(0)[40:]}"
    with pytest.raises(MlflowException, match=r"^row 0: image must be a base64 text or a data:"):
        predict(model, [stray])


def test_equal_scores_stay_in_the_labels_order_however_many(
    model: TaggerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [f"label {i}" for i in range(200)]
    monkeypatch.setattr(model.tagger, "labels", labels)
    monkeypatch.setattr(model.tagger, "thresholds", np.full(200, 0.6))
    halves = np.repeat([[0.25, 0.5]], 100, axis=0).reshape(1, 200).astype(np.float32)
    monkeypatch.setattr(model.tagger, "score", lambda images: halves)
    assert predict(model, [flat(0)], threshold=0.0)[0][0] == labels[1::2] + labels[::2]


def test_rows_are_counted_from_0_whatever_the_frames_index(model: TaggerModel) -> None:
    frame = pd.DataFrame({"image": ["?"]}, index=[41])
    with pytest.raises(MlflowException, match=r"^row 0:"):
        model.predict(None, frame)


def test_no_rows_give_no_rows(model: TaggerModel) -> None:
    assert predict(model, []) == []


def tagger_with(bundle: Path, **changes: Any) -> Tagger:
    settings = json.loads((bundle / "tagger.json").read_text()) | changes
    return Tagger(Tagger.load(bundle).session, settings)


def model_with(bundle: Path, **changes: Any) -> TaggerModel:
    model = TaggerModel()
    model.tagger = tagger_with(bundle, **changes)
    return model


def test_labels_can_have_thresholds_of_their_own(bundle: Path) -> None:
    model = model_with(bundle, thresholds=[0.9, 0.1, 0.5, 0.51])
    assert predict(model, [flat(51)])[0][0] == ["even", "bright"]
    assert predict(model, [flat(51)], threshold=0.79)[0][0] == ["dark"]


@pytest.mark.parametrize("wrong", [[0.5], [0.5] * 5, [[0.5] * 4] * 2])
def test_thresholds_that_do_not_fit_the_labels_are_refused(bundle: Path, wrong: Any) -> None:
    if np.shape(wrong) == (1,):
        assert tagger_with(bundle, thresholds=wrong).thresholds.tolist() == [0.5] * 4
        return
    with pytest.raises(ValueError):
        tagger_with(bundle, thresholds=wrong)


def test_a_score_that_equals_its_threshold_is_predicted_in_float32(bundle: Path) -> None:
    model = model_with(bundle, threshold=0.7)
    model.tagger.score = lambda images: np.full((1, 4), 0.7, np.float32)  # type: ignore[method-assign]
    assert len(predict(model, [flat(0)])[0][0]) == 4


def test_a_calibration_scales_and_shifts_the_logits(bundle: Path) -> None:
    scale, shift = [2.0, 0.5, 1.0, 1.0], [0.3, -1.0, 0.0, 1.0]
    calibrated = tagger_with(bundle, calibration={"scale": scale, "shift": shift})
    images = np.full((2, 3, SIZE, SIZE), 51, np.uint8)
    images[1] = 0  # whose scores are 1, 0, 0.5, 0.5
    raw = np.array([0.8, 0.2, 0.5, 0.5])
    expected = 1 / (1 + np.exp(-(np.array(scale) * np.log(raw / (1 - raw)) + np.array(shift))))
    scores = calibrated.score(images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert scores[1, 0] > 1 - 1e-6 and scores[1, 1] < 1e-6


def test_a_calibration_that_changes_nothing_keeps_every_score(bundle: Path) -> None:
    identity = tagger_with(bundle, calibration={"scale": [1.0] * 4, "shift": [0.0] * 4})
    images = np.stack([np.full((3, SIZE, SIZE), v, np.uint8) for v in range(0, 256, 5)])
    np.testing.assert_allclose(
        identity.score(images), Tagger.load(bundle).score(images), rtol=2e-7, atol=1e-37
    )


def test_a_data_uri_is_read_as_its_base64(model: TaggerModel) -> None:
    for start in ("data:image/png;base64,", "DATA:image/svg+xml;BASE64,"):
        assert predict(model, [start + flat(0)]) == predict(model, [flat(0)])


def test_all_scores_adds_every_label_whatever_threshold_and_top_k(model: TaggerModel) -> None:
    answer = model.predict(
        None, pd.DataFrame({"image": [flat(51)]}), {"all_scores": True, "top_k": 1}
    )
    (row,) = answer.to_dict("records")
    assert row["labels"] == ["dark"] and list(row["all_scores"]) == LABELS
    assert row["all_scores"] == pytest.approx(
        {"dark": 0.8, "bright": 0.2, "even": 0.5, "a sea": 0.5}
    )


def test_an_unexpected_error_is_logged_and_reveals_nothing(
    model: TaggerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(images: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(model.tagger, "score", fail)
    with pytest.raises(MlflowException) as caught:
        predict(model, [flat(0)])
    assert caught.value.message == "the model failed" and caught.value.__suppress_context__
    assert caught.value.error_code == "INTERNAL_ERROR"
    caught.value.message = SECRET  # as MLflow's server puts the request before a message
    assert SECRET not in caught.value.serialize_as_json()
    assert "RuntimeError" in caplog.text and "in fail" in caplog.text and SECRET not in caplog.text


def test_a_frame_without_the_column_image_is_refused(model: TaggerModel) -> None:
    with pytest.raises(MlflowException, match="no column image") as caught:
        model.predict(None, pd.DataFrame({SECRET: [1]}))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_environment_sets_the_threads_of_the_served_model(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(artifacts={"bundle": str(bundle)})
    for text, threads in (("3", 3), ("", 0), ("many", 0)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        model = TaggerModel()
        model.load_context(context)
        assert model.tagger.session.get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize(
    "stated",
    [{"fit": "stretch"}, {"interpolation": "lanczos"}, {"zoom": 2}, {"fill": [1, 2]}, {"fill": 1}],
)
def test_preprocessing_of_a_later_version_is_refused_rather_than_read_as_another(
    stated: dict[str, Any],
) -> None:
    with pytest.raises(MlflowException, match="this version does not know: .*; update nuswide"):
        tagger.preprocessing_of({"image_size_px": 32, "preprocessing": stated})
    for known in (Preprocessing(32), Preprocessing(32, "pad", "bicubic", (1, 2, 3))):
        assert tagger.preprocessing_of(known.as_settings()) == known
