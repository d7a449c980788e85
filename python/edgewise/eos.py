"""Which tokens end a text: three files may say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgewise._native import CheckpointError
from edgewise.chat import ReadFile, read_json
from edgewise.options import GENERATION_CONFIG
from edgewise.tokenizer import Tokenizer


def token_ids(
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
    read_file: ReadFile,
    tokenizer: Callable[[], Tokenizer | None],
) -> tuple[int, ...]:
    """Return the ids in `generation_config.json`, else `config.json`, else `tokenizer_config.json`.

    Raises:
        CheckpointError: if the entry is not an id or a list of ids.
    """
    text_config = config.get("text_config")
    places: list[tuple[str, Any]] = [
        (GENERATION_CONFIG, generation_config.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
        ("config.json", text_config.get("eos_token_id") if isinstance(text_config, Mapping) else None),
    ]
    for file, entry in places:
        if entry is not None:
            return _ids(file, entry)
    return _named(read_file, tokenizer)


def _ids(file: str, entry: Any) -> tuple[int, ...]:
    ids = entry if isinstance(entry, list) else [entry]
    if not all(
        isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0 for token_id in ids
    ):
        raise CheckpointError(f"{file}: 'eos_token_id': expected a token id or a list of them, got {entry!r}")
    return tuple(ids)


def _named(read_file: ReadFile, tokenizer: Callable[[], Tokenizer | None]) -> tuple[int, ...]:
    entry = read_json(read_file, "tokenizer_config.json").get("eos_token")
    name = entry.get("content") if isinstance(entry, Mapping) else entry
    known = tokenizer() if isinstance(name, str) else None
    token_id = known.token_to_id(name) if known is not None and isinstance(name, str) else None
    return () if token_id is None else (token_id,)
