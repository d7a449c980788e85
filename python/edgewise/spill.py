"""States of earlier texts on disk: what the cache in memory had no room for, for this and later processes.

    put(ids, state):  unless there:  remove the files used longest ago until there is room
                                     write <key>-<tokens>-<digest of ids>
    find(ids):        of the files whose digest is that of as many first ids, the one with the most tokens

A file is a saved sequence (docs/format.md): written whole or not at all, and checked when it is read. `key`
is a digest of the model's fingerprint and the version of this package, since another version may compute
other bits. Files of other models in the folder are never read, but count, and go when they were used longest
ago. What else lies in the folder is left alone. Texts with pictures are not written: the pictures would have
to be in the file too.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from edgewise._native import CheckpointError, ContextError, Engine
from edgewise._native import Sequence as NativeSequence
from edgewise.locks import ForkSafeLock

SUFFIX = ".text.safetensors"
STALE_SECONDS = 3600
"""After so long a temporary file was left behind by a process that was killed."""
_OURS = re.compile(r"([0-9a-f]{16})-(\d{1,9})-([0-9a-f]{32})" + re.escape(SUFFIX))
_TEMPORARY = re.compile(r"\.edgewise-\d+-\d+\.tmp")


class _File(NamedTuple):
    path: Path
    nbytes: int
    used: float


class Spill:
    """Texts in a folder, up to a number of bytes. Several threads and processes may use one folder."""

    def __init__(self, folder: Path, limit: int, engine: Engine, fingerprint: Callable[[], str]) -> None:
        """Make the folder, for its owner alone, if there is none.

        Raises:
            OSError: if that fails.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit
        self._engine = engine
        self._fingerprint = fingerprint
        self._lock = ForkSafeLock()

    @cached_property
    def _key(self) -> str:
        return _digest(f"{self._fingerprint()} {version('edgewise')}".encode(), 8)

    def put(self, ids: Sequence[int], native: NativeSequence) -> bool:
        """Write the text that `native` is the state of, if it fits at all; return whether it is there now.

        What goes wrong is a warning: the text is computed again when it is asked for.
        """
        path = self._folder / f"{self._key}-{len(ids)}-{_digest(_bytes(ids), 16)}{SUFFIX}"
        try:
            with self._lock:
                if _touched(path):
                    return True
                if not self._make_room(_size(ids, native)):
                    return False
                native.save(str(path), self._fingerprint(), ids, [])
                self._make_room(0)  # Another process may have written at the same time.
                return path.exists()
        except (OSError, CheckpointError) as error:
            warnings.warn(f"spill_dir: a text could not be kept: {error}", RuntimeWarning, stacklevel=2)
            return False

    def find(self, ids: Sequence[int], beyond: int, most: int) -> NativeSequence | None:
        """Return the longest state of a beginning of `ids`.

        `None` if there is none of more than `beyond` and at most `most` tokens. A file that is damaged, or
        holds another text than its name says, is removed with a warning.
        """
        for path, tokens in self._candidates(ids, beyond, most):
            try:
                native, found, media = NativeSequence.load(self._engine, str(path), self._fingerprint())
                if found != list(ids[:tokens]) or media:
                    raise CheckpointError(f"{path.name}: holds another text than its name says")
            except (CheckpointError, ContextError) as error:
                warnings.warn(f"spill_dir: {error}; it is removed", RuntimeWarning, stacklevel=2)
                with suppress(OSError):
                    path.unlink()
            except FileNotFoundError:
                continue  # Another process needed the room.
            except OSError as error:
                warnings.warn(f"spill_dir: {error}", RuntimeWarning, stacklevel=2)
            else:
                with suppress(OSError):  # Reading it worked: it is no loss if the folder cannot be written.
                    _touched(path)
                return native
        return None

    def _candidates(self, ids: Sequence[int], beyond: int, most: int) -> list[tuple[Path, int]]:
        """Return files of beginnings of `ids` by their names, the longest first."""
        named = []
        try:
            files = self._files()
        except OSError as error:
            warnings.warn(f"spill_dir: {error}", RuntimeWarning, stacklevel=3)
            return []
        for file in files:
            parts = _OURS.fullmatch(file.path.name)
            if parts is not None and parts[1] == self._key and beyond < int(parts[2]) <= most:
                named.append((int(parts[2]), parts[3], file.path))
        found, digest, done = [], hashlib.blake2b(digest_size=16), 0
        for tokens, name, path in sorted(named):
            digest.update(_bytes(ids[done:tokens]))
            done = tokens
            if digest.hexdigest() == name:
                found.append((path, tokens))
        return found[::-1]

    def _make_room(self, nbytes: int) -> bool:
        """Remove what was used longest ago until `nbytes` more fit; return whether they do."""
        files = self._files()
        taken = sum(file.nbytes for file in files)
        if nbytes > self._limit:
            return False
        for file in sorted(files, key=lambda file: file.used):
            if taken + nbytes <= self._limit:
                break
            file.path.unlink(missing_ok=True)
            taken -= file.nbytes
        return True

    def _files(self) -> list[_File]:
        """Return the texts in the folder; what a killed process left half written is removed."""
        files = []
        for path in self._folder.iterdir():
            ours = _OURS.fullmatch(path.name) is not None
            if not ours and not _TEMPORARY.fullmatch(path.name):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # Another process removed it.
            if ours:
                files.append(_File(path, status.st_size, status.st_mtime))
            elif time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        return files


def _touched(path: Path) -> bool:
    """Mark the file as used now; return whether it is there.

    One call, since another process may remove the file between two.
    """
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _size(ids: Sequence[int], native: NativeSequence) -> int:
    """Return what a file will take about."""
    return native.nbytes + 4 * len(ids) + 16384


def _bytes(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def _digest(data: bytes, size: int) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()
