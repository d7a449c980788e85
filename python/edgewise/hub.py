"""From what the user wrote to a path: something local, the model in the package, or one from the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEMO = "demo"
DEMO_FILE = Path(__file__).parent / "demo" / "demo.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "video_preprocessor_config.json", "*.safetensors",
    "model.safetensors.index.json",
]  # fmt: skip


def resolve(path_or_id: str | os.PathLike[str]) -> str:
    """Return the path of a checkpoint, fetched from the hub first if need be.

    `demo` is always the model that comes with the package; write `./demo` for a folder of that name.

    Raises:
        OSError: if there is no such checkpoint, or the hub cannot give it.
    """
    name = os.fspath(path_or_id)
    if name == DEMO:
        return _demo()
    path = Path(name).expanduser()
    if name and path.exists():
        return str(path)
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such file or folder, nor an id of the form 'organisation/name'")
    return _download(name)


def _demo() -> str:
    if not DEMO_FILE.is_file():
        raise FileNotFoundError(f"{DEMO_FILE}: the demo model is missing from this installation of edgewise")
    return str(DEMO_FILE)


def _download(name: str) -> str:
    """Fetch the files of the repository's top folder into the hub's cache, unless they are there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=["*/*"])
    except errors.GatedRepoError as error:
        raise OSError(
            f"{name}: its owner asks for consent first: accept the terms on its page, then 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such file or folder here, and no such repository on the hub (or it is private)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{name}: no such file or folder here, not in the hub's cache, and the hub cannot be reached"
        ) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{name}: no such file or folder, nor a valid id on the hub: {error}"
        ) from error
    except Exception as error:  # the HTTP library below, which differs between versions, has its own
        raise OSError(f"{name}: the hub could not give it: {error}") from error
