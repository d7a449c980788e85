"""Text of a growing list of token ids, given out in whole characters.

A character may be spread over several tokens. Text is therefore held back while it ends in U+FFFD, which is
what an unfinished character decodes to. A true U+FFFD waits too, until something follows it. The pieces are
those of `tokenizers.decoders.DecodeStream`, which never gives out the rest at the end; `flush` does.
"""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns token ids, one by one, into pieces of text whose concatenation is the text of all of them.

    Args:
        decode: the text of a list of token ids.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        # The ids of the last piece stay in the window: some decoders treat the first token differently.
        self._window: list[int] = []
        self._given_ids = 0
        self._given_text = ""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._given_text) or text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._given_text) :]
        del self._window[: self._given_ids]
        self._given_ids = len(self._window)
        self._given_text = self._decode(self._window)
        return piece

    def flush(self) -> str:
        """Return what is still held back, U+FFFD for an unfinished character, and begin anew."""
        piece = self._decode(self._window)[len(self._given_text) :]
        self._window, self._given_ids, self._given_text = [], 0, ""
        return piece
