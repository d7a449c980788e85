"""Images from files, bytes, data URIs, Pillow and numpy, as upright RGB pictures."""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from edgewise.media.errors import MediaError
from edgewise.media.file import MediaFile

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""A path, a `data:image/...;base64,` URI, the bytes of a file, a Pillow image or a numpy array."""

MAX_SOURCE_PIXELS = 80_000_000
"""Largest width x height that is decoded: a small file can hold a picture that fills the memory."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow knows more, but some start other programs (EPS) or are seldom tested against hostile files."""

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""

_DAMAGED_EXIF = (SyntaxError, struct.error, ValueError, LookupError, TypeError, ArithmeticError)
_warning_filters = threading.Lock()


def load_image(source: ImageSource, where: str = "image") -> Image.Image:
    """Return an image as an upright picture of mode RGB.

    The first frame of an animation is taken, the orientation in EXIF is applied, and what is transparent is
    put on white. 16-bit gray is clipped at 255, as in the original code. Nothing is downloaded.

    Args:
        source: a path, a `data:image/...;base64,` URI, the bytes of an image file, a Pillow image (which is
            not changed), or a numpy array [height, width], [height, width, 1], [height, width, 3] or
            [height, width, 4] in the order red, green, blue (that of OpenCV is the reverse), either uint8 or
            floating-point numbers from 0 to 1.
        where: what the image is called in errors, such as `images[1]`.

    Raises:
        MediaError: if it cannot be read, is no image, is damaged or is too large.
        TypeError: if `source` is none of these.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, where))
    if isinstance(source, Image.Image):
        return _decode(source, where, "the Pillow image")
    if isinstance(source, str | os.PathLike | bytes):
        return _load_file(MediaFile.of(source, "image", where))
    raise TypeError(
        f"{where}: expected a path, bytes, a Pillow image or a numpy array, got {type(source).__name__}"
    )


def _load_file(file: MediaFile) -> Image.Image:
    with file.open() as stream:
        with _decoding(file.where, file.name), _no_warnings():
            image = Image.open(stream, formats=_formats())
        with image:
            return _decode(image, file.where, file.name)


def _decode(image: Image.Image, where: str, name: str) -> Image.Image:
    """Check the size before the pixels are decoded, then make them upright RGB."""
    _check_size(image.width, image.height, where, name)
    with _decoding(where, name):
        image.load()
        orientation = _orientation(image)
        if orientation is not None:
            image = image.transpose(orientation)
        return _to_rgb(image)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture upright; nothing if its EXIF is damaged, as that is not the picture."""
    try:
        with _no_warnings():
            value = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED_EXIF:
        return None
    return _UPRIGHT.get(value) if isinstance(value, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Put a picture on white. A colour that RGB declares transparent stays, as in the original code."""
    if image.mode == "RGB":
        return image
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_array(array: NDArray[Any], where: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise MediaError(f"{where}: expected an array [height, width, 3], got shape {array.shape}")
    _check_size(array.shape[1], array.shape[0], where, "the array")
    if np.issubdtype(array.dtype, np.floating):
        array = _to_levels(array, where)
    if array.dtype != np.uint8:
        raise MediaError(f"{where}: expected an array of uint8 or of floats from 0 to 1, got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_levels(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Scale 0..1 to 0..255, halves to even."""
    if not (array.min() >= 0 and array.max() <= 1):
        raise MediaError(f"{where}: an array of floats must hold numbers from 0 to 1 only")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _check_size(width: int, height: int, where: str, name: str) -> None:
    if width * height == 0:
        raise MediaError(f"{where}: {name} has {width} x {height} pixels, so there is nothing to see")
    if width * height > MAX_SOURCE_PIXELS:
        raise MediaError(f"{where}: {name} has {width} x {height} pixels, the limit is {MAX_SOURCE_PIXELS}")


@contextmanager
def _decoding(where: str, name: str) -> Iterator[None]:
    """Turn what Pillow raises into `MediaError`: for damaged files that may be any kind of exception."""
    try:
        yield
    except UnidentifiedImageError:
        known = ", ".join(_formats())
        raise MediaError(f"{where}: {name} is not an image of a known format ({known})") from None
    except MemoryError:
        raise
    except Exception as error:
        raise MediaError(f"{where}: {name} cannot be decoded: {error}") from error


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of large pictures, which have a limit here, and of odd metadata.

    Warning filters belong to the process, hence the lock; decoding itself is not done under it.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
