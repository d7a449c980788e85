"""Images of every kind of source, mode and orientation."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise.media.image import load_image
from golden import Array


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def loaded(source: Any) -> Array:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def on_white(colour: Array, alpha: Array) -> Array:
    """Exact composition [height, width, 3] of uint8 colours."""
    opacity = alpha[..., None] / 255
    return colour * opacity + 255 * (1 - opacity)


def test_all_kinds_of_source_give_the_same_picture(tmp_path: Path) -> None:
    want = pixels()
    data = encoded(Image.fromarray(want))
    path = tmp_path / "a, b.png"
    path.write_bytes(data)
    uri = base64.b64encode(data).decode()
    for source in [
        str(path),
        path,
        data,
        Image.fromarray(want),
        Image.open(io.BytesIO(data)),
        want,
        f"data:image/png;base64,{uri}",
        f"DATA:image/png;charset=utf-8;BASE64,{uri[:20]}\n {uri[20:]}\r\n",
    ]:
        np.testing.assert_array_equal(loaded(source), want)


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels()).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(loaded("cat.png"), pixels())


def test_files_are_closed_and_arrays_kept(tmp_path: Path) -> None:
    """An open file would be a ResourceWarning, which is an error here."""
    path = tmp_path / "animated.gif"
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    load_image(path)
    path.rename(tmp_path / "moved.gif")
    source = pixels()
    load_image(source)
    np.testing.assert_array_equal(source, pixels())


def test_a_given_pillow_image_is_not_changed() -> None:
    image = Image.fromarray(pixels(channels=4))
    before = image.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_scaled(dtype: Any) -> None:
    want = pixels()
    np.testing.assert_array_equal(loaded((want / 255).astype(dtype)), want)


def test_arrays_of_one_and_four_channels() -> None:
    gray = pixels(channels=1)
    three = np.repeat(gray, 3, axis=2)
    np.testing.assert_array_equal(loaded(gray), three)
    np.testing.assert_array_equal(loaded(gray[:, :, 0]), three)
    transparent = pixels(channels=4)
    want = on_white(transparent[..., :3], transparent[..., 3])
    assert np.abs(loaded(transparent) - want).max() <= 1


def test_arrays_need_not_be_contiguous() -> None:
    array = pixels()[::-1, ::2]
    np.testing.assert_array_equal(loaded(array), array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    """Each value says where the stored first row and column belong."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = [255, 0, 0]
    upright[:16, 32:] = [0, 255, 0]
    upright[16:, :16] = [0, 0, 255]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    image = Image.fromarray(np.ascontiguousarray(stored))
    got = loaded(encoded(image, kind, exif=exif, **options)).astype(int)
    assert got.shape == upright.shape
    centres = (slice(8, None, 16), slice(8, None, 16))
    assert np.abs(got[centres] - upright[centres]).max() <= 3


@pytest.mark.parametrize("value", [0, 9, 60_000])
def test_orientations_that_do_not_exist_are_upright(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(loaded(encoded(Image.fromarray(pixels()), exif=exif)), pixels())


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_reason_to_refuse(exif: bytes, kind: str) -> None:
    assert loaded(encoded(Image.fromarray(pixels()), kind, exif=exif)).shape == (6, 8, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBX"])
def test_opaque_modes_are_converted(mode: str) -> None:
    gray = pixels(channels=1)[:, :, 0]
    image = Image.fromarray(gray)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert("RGB").convert(mode)
    want = np.repeat(gray[:, :, None], 3, axis=2)
    if mode in ("1", "P"):
        want = np.asarray(image.convert("RGB"))
    assert np.abs(loaded(image).astype(int) - want).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparent_modes_are_put_on_white(mode: str) -> None:
    gray = pixels(channels=1)[:, :, 0]
    alpha = np.full_like(gray, 255)
    alpha[:3] = 0
    image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
    if mode == "PA":
        image = image.convert("L").convert("PA")
        image.putalpha(Image.fromarray(alpha))
    elif mode != "LA":
        image = image.convert("RGBA").convert(mode)
    got = loaded(image)
    assert (got[:3] == 255).all()
    np.testing.assert_array_equal(got[3:], np.repeat(gray[3:, :, None], 3, axis=2))


def test_a_transparent_colour_of_a_palette_or_of_gray_is_white() -> None:
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for mode in ["L", "P"]:
        got = loaded(encoded(Image.fromarray(gray).convert(mode), transparency=7))
        assert got[0, 7].tolist() == [255, 255, 255]
        assert got[0, 6].tolist() == [6, 6, 6]


def test_a_palette_with_several_transparent_colours() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).convert("P")
    got = loaded(encoded(image, transparency=bytes([0, 255, 128])))
    assert got[0, :3].tolist() == [[255] * 3, [1] * 3, [128] * 3]


def test_a_transparent_colour_of_rgb_stays() -> None:
    """As in the original code, which leaves RGB as it is."""
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (loaded(encoded(image, transparency=(1, 2, 3))) == [1, 2, 3]).all()


def test_16_bits_are_clipped() -> None:
    levels = np.array([[0, 1, 255, 256, 65535]], np.uint16)
    assert loaded(encoded(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 1, 255, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_files(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = loaded(encoded(image, kind)).astype(int)
    assert np.abs(got - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(kind: str) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    first, *others = [Image.new("RGB", (16, 16), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert (loaded(data) == colours[0]).all()


@pytest.mark.parametrize("kind", ["BMP", "PPM", "AVIF", "JPEG2000"])
def test_other_formats(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this build of Pillow has no {kind}")
    got = loaded(encoded(Image.new("RGB", (16, 16), (200, 100, 50)), kind)).astype(int)
    assert np.abs(got - [200, 100, 50]).max() <= 4


def test_a_camera_s_file_of_two_pictures() -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in [(200, 0, 0), (0, 200, 0)])
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(loaded(data).astype(int) - [200, 0, 0]).max() <= 4


@given(
    st.sampled_from(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "I", "F", "I;16"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.binary(min_size=64, max_size=64),
)
def test_any_mode_becomes_rgb(mode: str, height: int, width: int, data: bytes) -> None:
    size = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), (data * (size // len(data) + 1))[:size])
    if mode in ("P", "PA"):
        image.putpalette(list(data), "RGB")
    got = load_image(image)
    assert got.mode == "RGB"
    assert got.size == (width, height)


def test_threads_may_load_at_once() -> None:
    data = encoded(Image.fromarray(pixels(64, 64)), "PNG")
    wrong: list[int] = []

    def load(number: int) -> None:
        if not all((loaded(data) == pixels(64, 64)).all() for _ in range(20)):
            wrong.append(number)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
