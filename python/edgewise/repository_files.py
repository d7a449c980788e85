"""Which files of a repository a model needs, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIDE_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
]  # fmt: skip
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_MOST_NAMED = 12


def side_files(files: Iterable[str]) -> list[str]:
    """Return the small files among `files` that a model reads, in a fixed order."""
    there = set(files)
    return [file for file in SIDE_FILES if file in there]


def choose(name: str, choice: str | None, files: list[str], read: Callable[[str], Any]) -> list[str]:
    """Return the files with the weights, the one to be opened first.

    Args:
        name: the repository, for messages.
        choice: which GGUF file, or `None` for safetensors.
        files: all names in the repository, sorted.
        read: gives the parsed JSON of a file.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if it is unclear which are meant.
    """
    return _safetensors(name, files, read) if choice is None else _gguf(name, choice, files)


def _safetensors(name: str, files: list[str], read: Callable[[str], Any]) -> list[str]:
    if SINGLE in files:
        return [SINGLE]
    if INDEX in files:
        return _shards(name, read(INDEX))
    found = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{name}: it is unclear which of its files is the model: {_listed(found)}")
    if models := _models(files):
        raise ValueError(
            f"{name}: holds GGUF files; choose one, such as '{name}:{_label(models)}': {_listed(models)}"
        )
    raise FileNotFoundError(f"{name}: the repository holds no weights in safetensors files")


def _shards(name: str, index: Any) -> list[str]:
    """Return the files that an index names, each once."""
    places = index.get("weight_map") if isinstance(index, dict) else None
    files = sorted(set(places.values())) if isinstance(places, dict) else []
    if not files or not all(isinstance(file, str) and "/" not in file and "\\" not in file for file in files):
        raise OSError(f"{name}: {INDEX} names no files of weights")
    return files


def _models(files: list[str]) -> dict[str, list[str]]:
    """GGUF models by name without ending: the parts of each, in order. Vision files are not models."""
    models: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith(".gguf") and "mmproj" not in file.lower():
            models.setdefault(_PART.sub("", file[:-5]), []).append(file)
    return models


def _gguf(name: str, choice: str, files: list[str]) -> list[str]:
    models = _models(files)
    if not models:
        raise FileNotFoundError(f"{name}: the repository holds no GGUF files")
    wanted = choice.removesuffix(".gguf").lower()
    exact = [model for model in models if model.rpartition("/")[2].lower() == _PART.sub("", wanted)]
    ends = re.compile(rf"(^|[-._/]){re.escape(wanted)}$", re.IGNORECASE)
    found = exact or [model for model in models if ends.search(model)]
    if not found:
        raise FileNotFoundError(f"{name}: the repository has no GGUF file for '{choice}': {_listed(models)}")
    if len(found) > 1:
        raise ValueError(f"{name}: '{choice}' fits several GGUF files: {_listed(found)}")
    parts = models[found[0]]
    _check_parts(name, parts)
    return parts


def _check_parts(name: str, parts: list[str]) -> None:
    """Refuse a model in several files of which some are not there."""
    numbers = [_PART.search(part[:-5]) for part in parts]
    counts = {int(number[2]) for number in numbers if number}
    numbered = [int(number[1]) for number in numbers if number]
    if counts and (len(counts) > 1 or numbered != list(range(1, counts.pop() + 1))):
        raise FileNotFoundError(f"{name}: not all files of a GGUF model are there: {_listed(parts)}")


def _label(models: Iterable[str]) -> str:
    """Return what chooses the first of `models`."""
    return min(models).rpartition("/")[2].rpartition("-")[2]


def _listed(names: Iterable[str]) -> str:
    """Return some of `names`, for a message."""
    listed = sorted(names)
    more = ", ..." if len(listed) > _MOST_NAMED else ""
    return ", ".join(listed[:_MOST_NAMED]) + more
