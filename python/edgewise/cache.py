"""Converted weights kept between runs, one file for each checkpoint and recipe."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

from edgewise import _native
from edgewise.progress import Progress


def folder() -> Path:
    """Where they lie: `EDGEWISE_CACHE`, else the user's cache folder."""
    if own := os.environ.get("EDGEWISE_CACHE"):
        return Path(own)
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or default).expanduser() / "edgewise"


def converted(
    path: str, dtype: str, recipe: str | None, threads: int | None, progress: Progress | None
) -> str:
    """Return the file with the weights of `path` converted, written first if it is not there.

    Raises:
        ValueError: if `dtype` and `recipe` ask for no conversion.
    """
    if recipe is None and dtype not in ("int4", "int8"):
        raise ValueError(
            "cache: only converted weights are kept; give dtype='int4', dtype='int8' or a recipe"
        )
    chosen = recipe or dtype
    target = folder() / f"{Path(path).resolve().stem}-{_key(Path(path), chosen)}.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _native.quantize(path, str(target), chosen, threads, progress)
    return str(target)


def _key(path: Path, recipe: str) -> str:
    """Change with the recipe, with any file of the checkpoint, and with the version of this package."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256(
        f"{version('edgewise')}\n{path.resolve()}\n{recipe}\n{_native.default_recipe(recipe)}".encode()
    )
    for file in files:
        digest.update(_file_version(file).encode())
    return digest.hexdigest()[:16]


def _file_version(file: Path) -> str:
    if not file.is_file():
        return ""
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}\n"
