"""The bytes of a video file, wherever they are: in a file, in memory, in a data URI."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgewise.media.errors import MediaError

MAX_SOURCE_FRAMES = 6_000_000
"""Most frames a video file may have: above 24 hours at 60 frames per second. 8 bytes are kept of each."""

MAX_DURATION = 24 * 60 * 60
"""Longest video file in seconds."""

_DATA_URI = re.compile(r"data:(?:video|image)/[^,]*?;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, eq=False, repr=False)
class VideoFile:
    """Bytes that can be read any number of times. Nothing is held open between."""

    source: Path | bytes
    name: str
    """What it is called in errors: the path, or what else was given."""
    where: str
    """The argument it came from, such as `videos[1]`."""

    @classmethod
    def of(cls, source: str | os.PathLike[str] | bytes, where: str) -> VideoFile:
        """Return the file at a path or in a data URI, or the bytes of one.

        Raises:
            MediaError: if there is no file, or the URI is of another kind.
        """
        if isinstance(source, bytes):
            return cls(source, f"a file of {len(source)} bytes", where)
        if isinstance(source, str) and source[:5].lower() == "data:":
            data = _data_uri(source, where)
            return cls(data, f"a data URI of {len(data)} bytes", where)
        if isinstance(source, str) and _URL.match(source):
            name = _shortened(source)
            raise MediaError(f"{where}: {name} is a URL, and nothing is downloaded: give a path or the bytes")
        path = os.fspath(source)
        file = cls(Path(path), _shortened(path), where)
        file.open().close()
        return file

    def open(self) -> BinaryIO:
        """Return a new stream of the bytes.

        Raises:
            MediaError: if the file cannot be read.
        """
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        try:
            if not stat.S_ISREG(self.source.stat().st_mode):
                raise self.error("is not a file")
            return self.source.open("rb")
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise error if isinstance(error, MediaError) else self.error(f"is no path: {error}") from None

    def head(self) -> bytes:
        """Return the first 12 bytes, by which some formats are known.

        Raises:
            MediaError: if the file cannot be read or is empty.
        """
        with self.open() as stream:
            head = stream.read(12)
        if not head:
            raise self.error("is empty")
        return head

    def error(self, reason: str) -> MediaError:
        """Return an error that names the argument and the file."""
        return MediaError(f"{self.where}: {self.name} {reason}")


def _data_uri(uri: str, where: str) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise MediaError(f"{where}: {_shortened(uri)} is not of the form data:video/...;base64,...")
    try:
        return base64.b64decode("".join(uri[match.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{where}: {_shortened(uri)} is not valid base64: {error}") from None


def _shortened(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:60]!r}... ({len(name)} characters)"
