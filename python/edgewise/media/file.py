"""The bytes of an image or video file, wherever they are: in a file, in memory, in a data URI."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgewise.media.errors import MediaError

_DATA_URIS = {
    "image": re.compile(r"data:image/[^,]{0,200};base64,", re.IGNORECASE),
    "video": re.compile(r"data:(?:video|image)/[^,]{0,200};base64,", re.IGNORECASE),
}
"""What data URIs of each kind begin with; animations are images by their type."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, eq=False, repr=False)
class MediaFile:
    """Bytes that can be read any number of times. Nothing is held open between."""

    source: Path | bytes
    name: str
    """What it is called in errors: the path, or what else was given."""
    where: str
    """The argument it came from, such as `videos[1]`."""

    @classmethod
    def of(cls, source: str | os.PathLike[str] | bytes, kind: str, where: str) -> MediaFile:
        """Return the file at a path or in a data URI, or the bytes of one.

        Args:
            source: a path, a `data:image/...;base64,` URI (or `data:video/...`), or the bytes themselves.
            kind: `image` or `video`.
            where: what it is called in errors.

        Raises:
            MediaError: if the URI is of another kind, or `source` is a URL. Whether there is a file at a path
                is seen when it is opened.
        """
        if isinstance(source, bytes):
            return cls(source, f"data of {len(source)} bytes", where)
        name = _shortened(os.fspath(source))
        if isinstance(source, str) and source[:5].lower() == "data:":
            match = _DATA_URIS[kind].match(source)
            if match is None:
                raise MediaError(f"{where}: {name} is not of the form data:{kind}/...;base64,...")
            data = from_base64(source[match.end() :], where)
            return cls(data, f"a data URI of {len(data)} bytes", where)
        if isinstance(source, str) and _URL.match(source):
            raise MediaError(f"{where}: {name} is a URL, and nothing is downloaded: give a path or the bytes")
        return cls(Path(source), name, where)

    def open(self) -> BinaryIO:
        """Return a new stream of the bytes.

        Raises:
            MediaError: if the file cannot be read.
        """
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        try:
            if stat.S_ISREG(self.source.stat().st_mode):
                return self.source.open("rb")
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        except ValueError as error:  # a NUL in the path
            raise self.error(f"cannot be read: {error}") from None
        raise self.error("is not a file")

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


def from_base64(text: str | bytes, where: str) -> bytes:
    """Return the bytes that stand in base64, in which white space is allowed.

    Raises:
        MediaError: if it is no base64.
    """
    try:
        data = text if isinstance(text, bytes) else text.encode("ascii")
        return base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise MediaError(f"{where}: not valid base64: {error}") from None


def _shortened(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:60]!r}... ({len(name)} characters)"
