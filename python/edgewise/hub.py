"""From what the user wrote to a path: something local, the model in the package, or one from the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgewise import repository
from edgewise.progress import Progress

DEMO = "demo"
DEMO_FILE = Path(__file__).parent / "demo" / "demo.safetensors"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?")


def resolve(
    path_or_id: str | os.PathLike[str],
    revision: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Return the path of a checkpoint, fetched from the hub first if need be.

    `demo` is always the model that comes with the package; write `./demo` for a folder of that name. Behind
    the id of a repository of GGUF files, a colon and a part of a name choose one: `org/name:Q4_K_M`.

    Args:
        path_or_id: what the user wrote.
        revision: branch, tag or commit of a repository on the hub.
        progress: called with (bytes done, bytes in all, file) while files are fetched.

    Raises:
        OSError: if there is no such checkpoint, or the hub cannot give it.
        ValueError: if a revision is given for something that is not on the hub, or it is unclear which file
            of a repository is meant.
    """
    name = os.fspath(path_or_id)
    if name == DEMO:
        return _local(_demo(), name, revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return _local(str(path), name, revision)
    found = _HUB_ID.fullmatch(name)
    if not found:
        raise FileNotFoundError(f"{name}: no such file or folder, nor an id of the form 'organisation/name'")
    return repository.fetch(found[1], found[2], revision, progress)


def _local(path: str, name: str, revision: str | None) -> str:
    if revision is not None:
        raise ValueError(
            f"revision: '{name}' is on this computer, only a repository of the hub has revisions"
        )
    return path


def _demo() -> str:
    if not DEMO_FILE.is_file():
        raise FileNotFoundError(f"{DEMO_FILE}: the demo model is missing from this installation of edgewise")
    return str(DEMO_FILE)
