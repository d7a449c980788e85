"""Text to token ids and back: the checkpoint's own `tokenizer.json`, run by the `tokenizers` library."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex

import tokenizers

from edgewise._native import CheckpointError

FILE = "tokenizer.json"


class Tokenizer:
    """Byte-level BPE of one checkpoint.

    Nothing is added to a text: no token for its beginning or end. Spellings of special tokens inside a text,
    such as `<|im_end|>`, become those tokens, as they do in the original code.

    >>> from edgewise import Model
    >>> tokenizer = Model.from_pretrained("demo").tokenizer
    >>> ids = tokenizer.encode("Hello!")
    >>> tokenizer.decode(ids)
    'Hello!'
    """

    def __init__(self, json: bytes, vocab_size: int | None = None) -> None:
        """Read the bytes of a `tokenizer.json`.

        Raises:
            CheckpointError: if the file is not usable, or has a token beyond the model's `vocab_size`.
        """
        self._tokenizer = _parse(json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = {token.content: token_id for token_id, token in added.items() if token.special}
        if vocab_size is not None:
            _check_vocabulary(self._tokenizer, vocab_size)

    def __len__(self) -> int:
        """Tokens in all, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`.

        Raises:
            TypeError: if `text` is not a string.
            ValueError: if `text` holds half of a surrogate pair, which no encoding of Unicode can express.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text: not valid Unicode at character {error.start}: {error.reason}") from None
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.

        `<think>` or `<tool_call>` are ordinary added tokens, not special ones: they are never skipped.

        Raises:
            TypeError: if an id is not an integer.
            ValueError: if an id is negative or beyond 32 bits.
        """
        numbers = [operator.index(token_id) for token_id in ids]
        try:
            return self._tokenizer.decode(numbers, skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise ValueError("ids: token ids lie between 0 and 2^32 - 1") from None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token written as in `tokenizer.json`, such as `<|im_end|>`."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """Return how a token is written in `tokenizer.json`, `None` for an unknown id."""
        return self._tokenizer.id_to_token(token_id)

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a special token, `None` if `token` is not one."""
        return self._special_ids.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for: perhaps a part of a character, none for an unknown id."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # an added token is spelled plainly
            return token.encode()


def _parse(json: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.decode())
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{FILE}: not UTF-8: {error}") from None
    except Exception as error:  # the library raises bare `Exception` for every fault of the file
        raise CheckpointError(f"{FILE}: {error}") from None


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointError(f"{FILE}: token id {largest} is beyond the model's vocabulary of {vocab_size}")


def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable Latin-1 as itself, the other 68 as U+0100 and up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(other)}


_BYTE_OF = _byte_alphabet()
