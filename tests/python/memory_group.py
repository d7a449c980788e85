"""A control group that limits the memory of a child process, page cache included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_VERSION_1 = Path("/sys/fs/cgroup/memory")
_VERSION_2 = Path("/sys/fs/cgroup")


class UnavailableError(Exception):
    """Why no group can be made here."""


@dataclass(frozen=True)
class Group:
    """A group with a limit."""

    folder: Path
    peak_file: str

    def join(self) -> None:
        """Move the calling process there."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        """Return the most bytes its processes held at once."""
        return int((self.folder / self.peak_file).read_text())


@contextmanager
def limited(limit: int) -> Iterator[Group]:
    """Make a group that allows `limit` bytes, and remove it when its processes have ended.

    Raises:
        UnavailableError: if the system has no control groups that this user may make.
    """
    name = f"edgewise-test-{os.getpid()}"
    if (_VERSION_1 / "memory.limit_in_bytes").exists():
        group, limit_file = Group(_VERSION_1 / name, "memory.max_usage_in_bytes"), "memory.limit_in_bytes"
    elif "memory" in _controllers():
        group, limit_file = Group(_VERSION_2 / name, "memory.peak"), "memory.max"
    else:
        raise UnavailableError("no control group of the system limits memory")
    try:
        group.folder.mkdir()
    except OSError as error:
        raise UnavailableError(f"no control group may be made: {error}") from error
    try:
        (group.folder / limit_file).write_text(str(limit))
        yield group
    finally:
        group.folder.rmdir()


def _controllers() -> list[str]:
    file = _VERSION_2 / "cgroup.subtree_control"
    return file.read_text().split() if file.exists() else []
