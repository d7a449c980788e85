"""One text that grows: the public object over a state of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise import checks, generation, inputs
from edgewise.chat import Message
from edgewise.options import GenerationArguments, OnFull, PromptArguments, keep_first, on_full
from edgewise.prompt import PlacedMedia, Prompt, moved
from edgewise.reading import Text
from edgewise.results import Piece, Result

if TYPE_CHECKING:
    from typing import SupportsIndex

    from typing_extensions import Unpack

    from edgewise.model import Model

TokenIds: TypeAlias = "Seq[SupportsIndex] | NDArray[np.integer[Any]]"
_KINDS = {"ids": "token ids", "prompt": "a prompt"}


class Sequence:
    """A text of a model that grows, can be copied, cut back, and kept in a file.

    Made by `Model.sequence`. Everything read or generated stays computed, so that going on costs only what is
    new. Bits are those of a text read at once, however it came about.

    >>> from edgewise import Model
    >>> model = Model.from_pretrained("demo")
    >>> with model.sequence() as sequence:
    ...     sequence.append([{"role": "user", "content": "Repeat: coins apples"}], enable_thinking=False)
    ...     length = len(sequence)
    ...     first = sequence.generate().text
    ...     sequence.rewind(length)
    ...     first == sequence.generate().text == "coins apples"
    True

    One thread at a time may use it. Forks are independent of each other.
    """

    def __init__(self, model: Model, text: Text) -> None:
        self._model = model
        self._held: Text | None = text
        self._lock = threading.Lock()

    @contextmanager
    def _text(self) -> Iterator[Text]:
        """Give the text to one caller at a time.

        Raises:
            ValueError: if the sequence is closed.
            RuntimeError: if somebody else is using it.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "sequence: it is in use, by another thread or by a stream that is not finished"
            )
        try:
            if self._held is None:
                raise ValueError("sequence: it is closed")
            self._held.settle()
            yield self._held
        finally:
            self._lock.release()

    def append(self, prompt: TokenIds | Seq[Message] | Prompt, **options: Any) -> None:
        """Read what follows.

        Messages go through the chat template as a conversation of their own, with the beginning of an answer
        behind them; `add_generation_prompt=False` leaves that out. A message before them that is not at its
        end, such as an answer, is ended first, as the template ends messages.

        Args:
            prompt: token ids, messages, or what `Model.prepare` returned.
            **options: with messages those of `Model.prepare`, and `add_generation_prompt`; and `progress`,
                `on_full` and `keep_first`, as in `Model.generate`.

        Raises:
            TypeError: if it is nothing of these, or there is no such option.
            ValueError: if it is malformed, or token ids are outside the vocabulary.
            ContextError: if the context has no room for all of it; with `on_full="shift"`, for what is always
                kept.

        After an error, or Ctrl-C, the sequence ends behind the last token that was read, never inside an
        image; if something was to be dropped, it is as before.

        >>> from edgewise import Model
        >>> sequence = Model.from_pretrained("demo").sequence()
        >>> sequence.append([5, 6, 7])
        >>> len(sequence), sequence.token_ids
        (3, [5, 6, 7])
        """
        progress = options.pop("progress", None)
        window = self._model._window(*_on_full(options))
        with self._text() as text:
            prepared = self._prepared(text, prompt, options)
            if window is None:
                self._model._check_context(len(text) + len(prepared))
            elif len(text) + len(prepared) > window.context:
                media = (moved(medium, len(text)) for medium in prepared.media)
                whole = Prompt([*text.ids, *prepared.token_ids], (*text.media, *media))
                text.become(window.joined(whole), progress=progress)
                return
            text.read(prepared, progress=progress)

    def _prepared(self, text: Text, prompt: Any, options: dict[str, Any]) -> Prompt:
        kind = inputs.kind(prompt)
        if kind == "text":
            raise TypeError("prompt: expected token ids, messages or a prompt; encode a string first")
        if kind == "messages":
            answer = options.pop("add_generation_prompt", True)
            variables = {**(options.pop("chat_template_kwargs", None) or {}), "add_generation_prompt": answer}
            prepared = self._model.prepare(prompt, chat_template_kwargs=variables, **options)
            return _joined(self._model._ending_of(text.ids), prepared)
        for name in options:
            raise TypeError(f"{name}: only messages are read with options, not {_KINDS[kind]}")
        return prompt if isinstance(prompt, Prompt) else self._model._prompt_of_ids(prompt)

    def generate(self, **options: Unpack[GenerationArguments]) -> Result:
        """Go on from the end of the text, see `Model.generate`; every token of the result then belongs to it.

        `usage.prompt_tokens` counts the whole text before, and `usage.cached_tokens` just as many: nothing of
        it is computed again.

        Args:
            **options: those of `Model.generate` that are not about the prompt.

        Raises:
            TypeError: for an argument that does not exist, belongs to `append`, or has the wrong type.
            ValueError: for a value out of range, or if the sequence is empty.
            ContextError: if the context has no room for an explicit `max_new_tokens`.
        """
        with self._text() as text:
            request = self._fitted(self._request(text, options), text)
            return generation.collect(request, self._pieces(request, text))

    def stream(self, **options: Unpack[GenerationArguments]) -> Generator[Piece]:
        """Like `generate`, but give each token's text as soon as it is certain.

        Each token is part of the sequence before its piece is given out. Until the generator has ended or is
        closed, nobody else can use the sequence.

        Raises:
            TypeError, ValueError, ContextError: as `generate`, at once and not with the first piece.
        """
        with self._text() as text:
            self._request(text, options)
        return self._stream(options)

    def _stream(self, options: Mapping[str, Any]) -> Generator[Piece]:
        with self._text() as text:
            yield from self._pieces(self._fitted(self._request(text, options), text), text)

    def _request(self, text: Text, options: Mapping[str, Any]) -> generation.Request:
        for name in options:
            if name in PromptArguments.__annotations__:
                raise TypeError(f"{name}: belongs to `append`; the text is read already")
        if not text.ids:
            raise ValueError("sequence: it is empty, so there is nothing to go on from")
        return self._model._continuation(text.ids.copy(), options)

    def _fitted(self, request: generation.Request, text: Text) -> generation.Request:
        """Drop what leaves too little room for the answer, where that is allowed."""
        if request.window is None:
            return request
        whole = Prompt(text.ids, text.media)
        kept = request.window.prompt(whole, request.max_new_tokens)
        if len(kept) < len(whole):
            text.become(kept)
        return replace(request, prompt_ids=text.ids.copy())

    def _pieces(self, request: generation.Request, text: Text) -> Generator[Piece]:
        sampler = self._model._checked_sampler(request.options.sampling)
        steps = generation.steps(request, text, sampler, keep=True)
        return self._model._scheduler.stream(steps, request.options.cancel)

    def logits(self) -> NDArray[np.float32]:
        """Return the scores of every possible next token, float32 [vocab].

        Raises:
            ValueError: if the sequence is empty.
        """
        with self._text() as text:
            return text.native.logits()

    def __len__(self) -> int:
        """Tokens read and generated so far; those of a call under way count when it is done with them."""
        return 0 if self._held is None else len(self._held)

    def __repr__(self) -> str:
        return "Sequence(closed)" if self._held is None else f"Sequence(tokens={len(self)})"

    @property
    def token_ids(self) -> list[int]:
        """All tokens; an image or a frame group of a video takes as many as its grid has squares of 2 x 2."""
        with self._text() as text:
            return text.ids.copy()

    @property
    def next_position(self) -> int:
        """Rotary position of the next token: `len` for text, less with images and videos."""
        with self._text() as text:
            return text.native.next_position

    @property
    def nbytes(self) -> int:
        """Bytes of the state: of constant size, and the KV cache, what is shared with forks included."""
        with self._text() as text:
            return text.native.nbytes

    def fork(self) -> Sequence:
        """Return a copy that goes its own way.

        Memory is shared until one side goes on: that copies the constant part of the state, and of the KV
        cache those pages that it writes to.
        """
        with self._text() as text:
            return Sequence(self._model, text.fork())

    def rewind(self, n_tokens: int) -> None:
        """Cut the text back to its first `n_tokens` tokens.

        The nearest checkpoint before is taken up and the rest computed again; checkpoints stand in the
        model's cache (`cache_bytes` of `Model.from_pretrained`). After an error or Ctrl-C the sequence is as
        before.

        Raises:
            TypeError: if `n_tokens` is not a whole number.
            ValueError: if it is out of range, or inside an image or a frame group of a video.

        >>> from edgewise import Model
        >>> sequence = Model.from_pretrained("demo").sequence()
        >>> sequence.append([5, 6, 7])
        >>> sequence.rewind(2)
        >>> sequence.token_ids
        [5, 6]
        """
        with self._text() as text:
            tokens = int(checks.Range(int, 0, len(text)).check("n_tokens", n_tokens))
            if tokens < len(text):
                self._held = text.beginning(tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sequence to a file, whole or not at all; `Model.load_sequence` reads it.

        The file fits this model only, in the same formats of weights and KV cache. It holds images as the
        model sees them, not their pixels.

        Raises:
            OSError: if the file cannot be written.
            MediaError: if a video of the text cannot be decoded any more.
        """
        with self._text() as text:
            self._model._save(text, os.fspath(path))

    def close(self) -> None:
        """Free the state. Every later use but `close` and `len` is an error.

        Raises:
            RuntimeError: if somebody else is using the sequence.
        """
        if self._held is not None:
            with self._text():
                self._held = None

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _on_full(options: dict[str, Any]) -> tuple[OnFull, int | None]:
    """Take out of `options` what to do when the context is full."""
    action, kept = options.pop("on_full", None), options.pop("keep_first", None)
    return on_full(action or "error"), None if kept is None else keep_first(kept)


def _joined(ids: list[int], prompt: Prompt) -> Prompt:
    """Return a prompt with token ids before it."""
    if not ids:
        return prompt
    media: tuple[PlacedMedia, ...] = tuple(moved(medium, len(ids)) for medium in prompt.media)
    return Prompt([*ids, *prompt.token_ids], media)
