"""What may be given as a prompt: a text, messages or token ids, and images and videos beside a text."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from edgewise.media import ImageSource, VideoSource
from edgewise.media.video import is_list
from edgewise.prompt import Prompt

Kind = Literal["text", "messages", "ids", "prompt"]
ImageInput: TypeAlias = ImageSource | Sequence[ImageSource]
"""One image, or a list of them."""
VideoInput: TypeAlias = VideoSource | Sequence[VideoSource]
"""One video, or a list of them."""

_STILL_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""File names that end so hold a single frame."""
_JPEG = b"\xff\xd8\xff"
"""How JPEG files begin, as cameras send them; other formats may hold one picture or many."""


def kind(prompt: Any) -> Kind:
    """Return what `prompt` is, judged by its type and its first element.

    Raises:
        TypeError: if it is nothing of these.
        ValueError: if it is empty.
    """
    if isinstance(prompt, Prompt):
        return "prompt"
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: expected a string, messages or token ids, got {type(prompt).__name__}")
    first = next(iter(prompt), None)
    if first is None:
        raise ValueError("prompt: is empty")
    if isinstance(prompt, str):
        return "text"
    return "messages" if isinstance(first, Mapping) else "ids"


def are_messages(prompt: Any) -> bool:
    """Tell whether `prompt` is a list of messages, judged by its first element."""
    return isinstance(prompt, Iterable) and isinstance(next(iter(prompt), None), Mapping)


def image_list(images: Any) -> list[Any]:
    """Return what was given as `images=` as a list.

    Raises:
        TypeError: if it is neither an image nor a list of them.
    """
    if is_list(images):
        return list(images)
    if isinstance(images, str | os.PathLike | bytes | np.ndarray | Image.Image):
        return [images]
    raise TypeError(f"images: expected an image or a list of images, got {type(images).__name__}")


def video_list(videos: Any) -> list[Any]:
    """Return what was given as `videos=` as a list of videos.

    A list of frames is one video: of Pillow images, of arrays [height, width, 3], of paths that end in
    `.png`, `.jpg` and the like, of the bytes of JPEG files. A list of anything else holds one video in each
    element: a list of frames, an array [frames, height, width, 3], a path, a data URI, or other bytes. The
    path of a single `.png` file is a video of its own, as it may be an animation.

    Raises:
        TypeError: if it is no video and no list of videos, or a list of both frames and videos.
    """
    if isinstance(videos, str | os.PathLike | bytes | np.ndarray):
        return [videos]
    if not is_list(videos):
        raise TypeError(f"videos: expected a video or a list of videos, got {type(videos).__name__}")
    if len(videos) == 1 and _is_png_file(videos[0]):
        return list(videos)
    frames = [_is_frame(element) for element in videos]
    if any(frames) and not all(frames):
        index = frames.index(not frames[0])
        raise TypeError(f"videos[{index}]: a list holds either the frames of one video, or videos")
    return [list(videos)] if any(frames) else list(videos)


def _is_frame(element: Any) -> bool:
    if isinstance(element, np.ndarray):
        return element.ndim < 4
    if isinstance(element, str) and element[:5].lower() == "data:":
        return element[5:11].lower() == "image/"
    if isinstance(element, str | os.PathLike):
        return PurePath(element).suffix.lower() in _STILL_PICTURES
    if isinstance(element, bytes):
        return element.startswith(_JPEG)
    return isinstance(element, Image.Image)


def _is_png_file(element: Any) -> bool:
    return isinstance(element, str | os.PathLike) and PurePath(element).suffix.lower() == ".png"


def token_ids(ids: Any, vocab_size: int) -> list[int]:
    """`ids` as plain integers.

    Raises:
        TypeError: if one of them is not an integer.
        ValueError: if there are none, or one is outside the vocabulary.
    """
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise TypeError(f"ids: expected a list of token ids, got {type(ids).__name__}")
    numbers = [_integer(position, token_id) for position, token_id in enumerate(ids)]
    if not numbers:
        raise ValueError("ids: there must be at least one token id")
    for position, number in enumerate(numbers):
        if not 0 <= number < vocab_size:
            raise ValueError(f"ids[{position}]: {number} is outside the vocabulary of {vocab_size}")
    return numbers


def _integer(position: int, token_id: Any) -> int:
    if isinstance(token_id, bool):
        raise TypeError(f"ids[{position}]: expected a token id, got {token_id!r}")
    try:
        return operator.index(token_id)
    except TypeError:
        raise TypeError(f"ids[{position}]: expected a token id, got {type(token_id).__name__}") from None
