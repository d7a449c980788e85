"""What may be given as a prompt: a text, messages or token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["text", "messages", "ids"]


def kind(prompt: Any) -> Kind:
    """Return what `prompt` is, judged by its type and its first element.

    Raises:
        TypeError: if it is nothing of the three.
        ValueError: if it is empty.
    """
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: expected a string, messages or token ids, got {type(prompt).__name__}")
    first = next(iter(prompt), None)
    if first is None:
        raise ValueError("prompt: is empty")
    if isinstance(prompt, str):
        return "text"
    return "messages" if isinstance(first, Mapping) else "ids"


def token_ids(ids: Any, vocab_size: int) -> list[int]:
    """`ids` as plain integers.

    Raises:
        TypeError: if one of them is not an integer.
        ValueError: if there are none, or one is outside the vocabulary.
    """
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise TypeError(f"ids: expected a list of token ids, got {type(ids).__name__}")
    numbers = [_integer(position, token_id) for position, token_id in enumerate(ids)]
    if not numbers:
        raise ValueError("ids: there must be at least one token id")
    for position, number in enumerate(numbers):
        if not 0 <= number < vocab_size:
            raise ValueError(f"ids[{position}]: {number} is outside the vocabulary of {vocab_size}")
    return numbers


def _integer(position: int, token_id: Any) -> int:
    if isinstance(token_id, bool):
        raise TypeError(f"ids[{position}]: expected a token id, got {token_id!r}")
    try:
        return operator.index(token_id)
    except TypeError:
        raise TypeError(f"ids[{position}]: expected a token id, got {type(token_id).__name__}") from None
