"""Sources that are damaged, lie about their size, or are no images: each gives one clear sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise.media.errors import MediaError
from edgewise.media.image import MAX_SOURCE_PIXELS, load_image
from edgewise.media.prepared import prepare_image
from edgewise.media.settings import ImageSettings

KINDS = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]


def picture(kind: str) -> bytes:
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, kind)
    return stream.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def refusal(source: Any, **arguments: Any) -> str:
    with pytest.raises(MediaError) as raised:
        load_image(source, **arguments)
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files(kind: str, part: float, tmp_path: Path) -> None:
    data = picture(kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * part)])
    assert refusal(path, where="images[1]").startswith(f"images[1]: {str(path)!r} ")
    path.rename(tmp_path / "moved")


@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_give_a_picture_or_the_one_error(kind: str, data: Any) -> None:
    content = bytearray(picture(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 300)))] = data.draw(st.integers(0, 255))
    try:
        image = load_image(bytes(content))
    except MediaError:
        return
    assert image.mode == "RGB"


@given(st.binary(max_size=200))
def test_noise_is_no_image(data: bytes) -> None:
    assert refusal(data).startswith(f"image: data of {len(data)} bytes ")


@pytest.mark.parametrize(
    "data", [b"", b"a cat", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"]
)
def test_bytes_that_are_no_image(data: bytes) -> None:
    assert refusal(data).startswith(
        f"image: data of {len(data)} bytes is not an image of a known format (JPEG"
    )


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """Pillow would start Ghostscript."""
    path = tmp_path / "a.eps"
    Image.new("RGB", (8, 8)).save(path)
    assert "not an image of a known format" in refusal(path)


@pytest.mark.parametrize(
    ("width", "height"),
    [(10_000, 10_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (1, MAX_SOURCE_PIXELS + 1)],
)
def test_bombs_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    message = refusal(png(width, height, png_chunk(b"IDAT", zlib.compress(b""))))
    assert "pixels" in message
    assert len(message) < 250


def test_a_lowered_limit_of_pillow_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "could be decompression bomb" in refusal(picture("PNG"))


def test_metadata_bombs() -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 100_000_000, 1))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * (4 * (1 + 12))))
    assert "cannot be decoded" in refusal(png(4, 4, text, body))


def test_pngs_of_no_size() -> None:
    assert refusal(png(0, 5))


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    assert refusal(missing) == f"image: {str(missing)!r} cannot be read: No such file or directory"
    assert refusal(str(tmp_path)) == f"image: {str(tmp_path)!r} is not a file"
    assert refusal("") == "image: '' is not a file"
    assert refusal("a\0b").startswith("image: 'a\\x00b' cannot be read: ")
    assert refusal("/dev/null") == "image: '/dev/null' is not a file"
    text = tmp_path / "cat.txt"
    text.write_text("a cat")
    assert refusal(text, where="images[1]").startswith(f"images[1]: {str(text)!r} is not an image of a known")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")


def test_long_texts_are_not_repeated() -> None:
    """Such as base64 without the head of a URI."""
    message = refusal("iVBORw0KGgo" * 10_000)
    assert "(110000 characters) cannot be read" in message
    assert len(message) < 200


@pytest.mark.parametrize("url", ["http://a.b/c.png", "HTTPS://a.b/c.png", "file:///c.png", "s3://a/b"])
def test_urls_are_not_fetched(url: str) -> None:
    message = f"image: {url!r} is a URL, and nothing is downloaded: give a path or the bytes"
    assert refusal(url) == message


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:,",
        "data:image/png",
        "data:image/png,abc",
        "data:text/plain;base64,YQ==",
        "data:image/png;base64",
        "data:" + ";" * 100_000,
        "data:" + "a" * 100_000 + ",",
    ],
)
def test_other_data_uris(uri: str) -> None:
    message = refusal(uri)
    assert message.endswith("is not of the form data:image/...;base64,...")
    assert len(message) < 200


@pytest.mark.parametrize("data", ["a", "iVBO*w0K", "äöü", "YQ=", "YQ==YQ"])
def test_bad_base64(data: str) -> None:
    assert "not valid base64" in refusal(f"data:image/png;base64,{data}")


def test_base64_of_no_image() -> None:
    assert "is not an image of a known format" in refusal("data:image/png;base64,YWJj")
    assert "is not an image of a known format" in refusal("data:image/png;base64,")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "the array has 5 x 0 pixels, so there is nothing to see"),
        (np.zeros((5, 0), np.uint8), "the array has 0 x 5 pixels, so there is nothing to see"),
        (np.zeros((3, 5, 6), np.uint8), "expected an array [height, width, 3], got shape (3, 5, 6)"),
        (np.zeros((5, 5, 2), np.uint8), "expected an array [height, width, 3], got shape (5, 5, 2)"),
        (np.zeros((1, 5, 5, 3), np.uint8), "got shape (1, 5, 5, 3)"),
        (np.zeros(5, np.uint8), "got shape (5,)"),
        (np.zeros((), np.uint8), "got shape ()"),
        (np.zeros((5, 5, 3), np.int64), "uint8 or of floats from 0 to 1, got int64"),
        (np.zeros((5, 5, 3), np.uint16), "got uint16"),
        (np.zeros((5, 5, 3), bool), "got bool"),
        (np.zeros((5, 5, 3), complex), "got complex128"),
        (np.zeros((5, 5, 3), object), "got object"),
        (np.full((5, 5, 3), np.nan), "an array of floats must hold numbers from 0 to 1 only"),
        (np.full((5, 5, 3), np.inf), "from 0 to 1 only"),
        (np.full((5, 5, 3), 1.01), "from 0 to 1 only"),
        (np.full((5, 5, 3), -0.1, np.float32), "from 0 to 1 only"),
        (
            np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)),
            "the array has 10000 x 10000 pixels, the limit is",
        ),
    ],
)
def test_other_arrays(array: Any, message: str) -> None:
    refused = refusal(array, where="images[2]")
    assert refused.startswith("images[2]: ")
    assert message in refused


@pytest.mark.parametrize("source", [None, 5, ["a.png"], {"url": "a.png"}, io.BytesIO(b""), bytearray(b"")])
def test_other_types(source: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^images\[0\]: expected a path, bytes, a Pillow image or a numpy array"
    ):
        load_image(source, "images[0]")


def test_pillow_images_that_cannot_be_used() -> None:
    closed = Image.open(io.BytesIO(picture("PNG")))
    closed.close()
    assert "the Pillow image cannot be decoded" in refusal(closed)
    assert "nothing to see" in refusal(Image.new("RGB", (0, 5)))
    premultiplied_gray = Image.new("LA", (4, 4)).convert("La")
    assert "conversion from La" in refusal(premultiplied_gray)
    cut = Image.open(io.BytesIO(picture("JPEG")[:-200]))
    assert "the Pillow image cannot be decoded" in refusal(cut)


def test_long_images_are_refused() -> None:
    with pytest.raises(MediaError, match=r"^images\[3\]: 201 x 1 pixels: one side may be at most 200 times"):
        prepare_image(np.zeros((1, 201), np.uint8), ImageSettings(), where="images[3]")
    assert prepare_image(np.zeros((1, 200), np.uint8), ImageSettings()).grid_thw == (1, 2, 228)


def test_limits_out_of_range_are_refused() -> None:
    array = np.zeros((5, 5), np.uint8)
    for limit in [0, -1, 2**80]:
        with pytest.raises(ValueError, match=r"^image: max_pixels: expected a number of at least 1"):
            prepare_image(array, ImageSettings(), max_pixels=limit)
    with pytest.raises(MediaError, match=r"^image: min_pixels 9 is above max_pixels 8$"):
        prepare_image(array, ImageSettings(), min_pixels=9, max_pixels=8)
