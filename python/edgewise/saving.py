"""Texts in files."""

from __future__ import annotations

from edgewise import _native
from edgewise.encoder import Encoder
from edgewise.media_options import MediaKind
from edgewise.prompt import PlacedMedia, Prompt
from edgewise.reading import Reader, Text
from edgewise.stored import StoredGroup, StoredImage, StoredSettings


def save(text: Text, encoder: Encoder, fingerprint: str, path: str) -> None:
    """Write a text to a file, whole or not at all; see `Sequence.save`."""
    keys: dict[int, bytes] = {}

    def mark(start: int, _: int, key: bytes) -> None:
        keys[start] = key

    encoded = encoder.encode(Prompt(text.ids, text.media), mark=mark)
    media = [(start, features, keys[start]) for start, features in encoded]
    text.native.save(path, fingerprint, text.ids, media)


def load(reader: Reader, fingerprint: str, path: str) -> Text:
    """Read a text that `save` wrote; see `Model.load_sequence`."""
    native, ids, media = _native.Sequence.load(reader.engine, path, fingerprint)
    vision = reader.engine.vision or {}
    placed = []
    for index, (start, features, key) in enumerate(media):
        group = StoredGroup(features, key)
        image = StoredImage(group, StoredSettings(vision["merge_size"]))
        kind: MediaKind = "video" if ids[start] == vision["video_token_id"] else "image"
        placed.append(PlacedMedia(kind, image, (start,), f"media[{index}]"))
    return Text.of(reader, native, ids, tuple(placed))
