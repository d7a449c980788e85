"""Streamed text parted into thought and answer."""

from __future__ import annotations

from edgewise.chat import END_THINK, THINK


class ThoughtSplitter:
    """Follows `<think>` and `</think>` through text that arrives in pieces.

    Args:
        thinking: whether the text begins inside a thought.
    """

    def __init__(self, thinking: bool) -> None:
        self._thinking = thinking
        self._held = ""

    def push(self, text: str) -> list[tuple[bool, str]]:
        """Return (is thought, text) for what is certain by now, without the marks themselves."""
        self._held += text
        parts = []
        while (mark := self._mark()) in self._held:
            before, _, self._held = self._held.partition(mark)
            parts.append((self._thinking, before))
            self._thinking = not self._thinking
        keep = next(n for n in range(len(mark), -1, -1) if self._held.endswith(mark[:n]))
        certain = len(self._held) - keep
        parts.append((self._thinking, self._held[:certain]))
        self._held = self._held[certain:]
        return [part for part in parts if part[1]]

    def flush(self) -> list[tuple[bool, str]]:
        """Return what was held back because it could have been a mark."""
        rest, self._held = self._held, ""
        return [(self._thinking, rest)] if rest else []

    def _mark(self) -> str:
        return END_THINK if self._thinking else THINK
