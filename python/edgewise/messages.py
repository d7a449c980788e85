"""Images and videos in messages: found, checked, and set apart from what the chat template is shown."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewise import chat, media_options
from edgewise.chat import Message
from edgewise.media.file import from_base64
from edgewise.media_options import MediaKind

_KINDS: dict[str, MediaKind] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
_SHOWN = 40
"""Characters of a wrong value that an error repeats."""


@dataclass(frozen=True)
class MediaPart:
    """An image or a video, and where it was given."""

    kind: MediaKind
    source: Any
    """What `edgewise.media` reads; `None` where `images=` or `videos=` is to fill the place."""
    where: str
    """For messages: `messages[0].content[1]` or `images[0]`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of this part alone, by the names in `MediaOptions`."""


def separate(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Take images and videos out of messages.

    Returns:
        The messages with `{"type": "image"}` or `{"type": "video"}` in place of each, which is what chat
        templates know; and what stood there, in order.

    Raises:
        TypeError: if `messages` is not a list of dictionaries, or an option has the wrong type.
        ValueError: if a message or a part is malformed, or its address is not a data URI.
    """
    plain, parts = [], []
    for index, message in enumerate(chat.checked_messages(messages)):
        content = message.get("content")
        if isinstance(content, list):
            found = [_part(part, f"messages[{index}].content[{i}]") for i, part in enumerate(content)]
            parts += [part for part in found if isinstance(part, MediaPart)]
            message["content"] = [{"type": p.kind} if isinstance(p, MediaPart) else p for p in found]
        plain.append(message)
    return plain, parts


def fill(parts: Sequence[MediaPart], images: Sequence[Any], videos: Sequence[Any]) -> list[MediaPart]:
    """Give those parts that have no source one, in order.

    Raises:
        ValueError: if there are more or fewer sources than places for them.
    """
    sources: dict[str, Iterator[MediaPart]] = {}
    kinds: list[tuple[MediaKind, Sequence[Any]]] = [("image", images), ("video", videos)]
    for kind, given in kinds:
        empty = [part.where for part in parts if part.kind == kind and part.source is None]
        if empty and not given:
            raise ValueError(f"{empty[0]}: this {kind} has no source, and {kind}s= gives none")
        if len(empty) != len(given):
            raise ValueError(
                f"{kind}s: {len(given)} given, but the messages have {len(empty)} places for them: each is a "
                f"part {{'type': '{kind}'}} without a source"
            )
        sources[kind] = iter(arguments(kind, given))
    return [_filled(part, sources) for part in parts]


def arguments(kind: MediaKind, sources: Sequence[Any]) -> list[MediaPart]:
    """Return what was given as `images=` or `videos=`."""
    return [MediaPart(kind, source, f"{kind}s[{index}]") for index, source in enumerate(sources)]


def question(text: str, images: Sequence[Any], videos: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a text as the one message of a user, with places for images and videos before it."""
    if not images and not videos:
        return [{"role": "user", "content": text}]
    places = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
    return [{"role": "user", "content": [*places, {"type": "text", "text": text}]}]


def texts(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Yield every text in messages, and where it stands."""
    for index, message in enumerate(messages):
        yield from _strings(message, f"messages[{index}]")


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    pending = [(value, where)]
    while pending:  # tool arguments may be nested deeper than calls can be
        value, where = pending.pop()
        if isinstance(value, str):
            yield value, where
        elif isinstance(value, Mapping):
            pending += [(entry, f"{where}.{key}") for key, entry in value.items()]
            yield from ((key, where) for key in value if isinstance(key, str))
        elif isinstance(value, list | tuple):
            pending += [(entry, f"{where}[{index}]") for index, entry in enumerate(value)]


def _filled(part: MediaPart, sources: Mapping[str, Iterator[MediaPart]]) -> MediaPart:
    if part.source is not None:
        return part
    given = next(sources[part.kind])
    return replace(part, source=given.source, where=given.where)


def _part(part: Mapping[str, Any], where: str) -> MediaPart | dict[str, Any]:
    """Return a part's image or video; any other part without empty entries for them.

    Entries that are `None` count as left out: tables of examples fill them in for every part.
    """
    plain = {key: value for key, value in part.items() if value is not None or key not in _KINDS}
    kind = _kind(plain, where)
    if kind is None:
        return plain
    given = {key: value for key, value in plain.items() if value is not None and key != "type"}
    keys = [key for key in (kind, f"{kind}_url", "path", "url", "base64") if key in given]
    if len(keys) > 1:
        raise ValueError(f"{where}: both '{keys[0]}' and '{keys[1]}' are given, only one can be the {kind}")
    source = _source(keys[0], given.pop(keys[0]), where) if keys else None
    return MediaPart(kind, source, where, _options(kind, given, where))


def _kind(part: Mapping[str, Any], where: str) -> MediaKind | None:
    name = part.get("type")
    keys = [key for key in _KINDS if key in part]
    named = _KINDS.get(name) if isinstance(name, str) else None
    kinds = {_KINDS[key] for key in keys} | ({named} if named else set())
    if not kinds:
        return None
    if len(kinds) > 1 or (name is not None and named is None):
        raise ValueError(f"{where}: its type is {_shown(name)}, but it has '{keys[-1]}'")
    return kinds.pop()


def _source(key: str, value: Any, where: str) -> Any:
    if key.endswith("url"):
        return _data_uri(_address(value, f"{where}.{key}"), f"{where}.{key}")
    if key == "path":
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{where}.path: expected a path, got {type(value).__name__}")
        return Path(value)
    if key == "base64":
        return _decoded(value, f"{where}.base64")
    return value


def _address(value: Any, where: str) -> str:
    """Return the address in OpenAI's `{"url": ...}`, whose `detail` has no meaning here, or a bare one."""
    address = value
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("url", "detail")]
        if unknown:
            raise ValueError(f"{where}: unexpected key {_shown(unknown[0])}")
        address = value.get("url")
    if not isinstance(address, str):
        raise ValueError(f"{where}: expected a data URI, or a dictionary with one as 'url'")
    return address


def _data_uri(address: str, where: str) -> bytes:
    """Return the bytes in a `data:` URI; nothing is downloaded, and no file is read."""
    scheme, _, rest = address.partition(":")
    if scheme.lower() in ("http", "https"):
        raise ValueError(f"{where}: nothing is downloaded; pass the bytes as a data URI, or a path as 'path'")
    if scheme.lower() != "data" or not rest:
        raise ValueError(f"{where}: expected a data URI (data:...;base64,...), got {_shown(address)}")
    head, comma, data = rest.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{where}: only data URIs in base64 are understood, got {_shown(address)}")
    return _decoded(data, where)


def _decoded(value: Any, where: str) -> bytes:
    if not isinstance(value, str | bytes):
        raise TypeError(f"{where}: expected a string in base64, got {type(value).__name__}")
    return from_base64(value, where)


def _options(kind: MediaKind, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    allowed = media_options.OF_IMAGES if kind == "image" else media_options.OF_VIDEOS
    for key in given:
        if key not in allowed:
            raise ValueError(f"{where}: unexpected key {_shown(key)}{_suggestion(key, kind, allowed)}")
    return {key: media_options.RANGES[key].check(f"{where}.{key}", value) for key, value in given.items()}


def _suggestion(key: Any, kind: MediaKind, allowed: Sequence[str]) -> str:
    known = [kind, f"{kind}_url", "path", "url", "base64", *allowed]
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
