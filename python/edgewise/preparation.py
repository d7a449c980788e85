"""What is given as a prompt to a `Prompt`: template, placeholders, tokens, images and videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from edgewise import inputs, messages, placeholders
from edgewise._native import CheckpointError, ContextError, Engine
from edgewise.chat import ChatTemplate, Message
from edgewise.media import (
    ImageSettings,
    PreparedImage,
    PreparedVideo,
    VideoSettings,
    prepare_image,
    prepare_video,
)
from edgewise.media.sampling import timestamp_text
from edgewise.media_options import MediaOptions
from edgewise.messages import MediaPart
from edgewise.options import PromptOptions
from edgewise.placeholders import MediaTokens, Shape
from edgewise.prompt import PlacedMedia, Prompt
from edgewise.tokenizer import Tokenizer

_Settings = TypeVar("_Settings", ImageSettings, VideoSettings)


@dataclass(frozen=True)
class Preparation:
    """A prompt, and the time that reading its images took."""

    prompt: Prompt
    media_seconds: float = 0.0


class Preparer:
    """Makes prompts for one model."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        chat_template: ChatTemplate | None,
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        self._engine = engine
        self._name = name
        self._chat_template = chat_template
        self._tokenizer = tokenizer

    def prepare(self, prompt: Any, options: PromptOptions) -> Preparation:
        """Return what `prompt` stands for.

        Raises:
            TypeError: if it is nothing that can be a prompt.
            ValueError: if it is empty or malformed, or options or media do not fit to it.
            CheckpointError: if a file of the checkpoint that is needed is missing or unusable.
        """
        kind = inputs.kind(prompt)
        if kind in ("ids", "prompt"):
            return Preparation(self._finished(prompt, options))
        if kind == "messages":
            return self._conversation(prompt, options)
        if options.raw or self._chat_template is None:
            return self._raw(prompt, options)
        self._refuse_media_tokens([(prompt, "prompt")])
        return self._conversation(messages.question(prompt, options.images, options.videos), options)

    def render(self, conversation: Sequence[Message], **variables: Any) -> str:
        """Return the text that the chat template makes of messages, with one placeholder an image or video.

        Raises:
            CheckpointError: if there is no chat template, or it is at fault.
            ValueError: if the messages are malformed, or the template refuses them.
        """
        return self._rendered(messages.separate(conversation)[0], variables)

    def _rendered(self, plain: Sequence[Message], variables: dict[str, Any]) -> str:
        if self._chat_template is None:
            raise CheckpointError(f"{self._name}: there is no chat template; pass a string or token ids")
        return self._chat_template.render(plain, **variables)

    def _conversation(self, conversation: Sequence[Message], options: PromptOptions) -> Preparation:
        if options.raw:
            raise ValueError("raw: only a string can be continued as it stands, not messages")
        plain, parts = messages.separate(conversation)
        parts = messages.fill(parts, options.images, options.videos)
        self._refuse_media_tokens(messages.texts(plain))
        return self._placed(self._rendered(plain, options.template_variables()), parts, options)

    def _finished(self, prompt: Any, options: PromptOptions) -> Prompt:
        """Return a prompt that is one already, or token ids as one."""
        _refuse_template_options(options)
        for name in options.used_by_media():
            raise ValueError(f"{name}: only text and messages can take in images and videos")
        return prompt if isinstance(prompt, Prompt) else self.of_ids(prompt)

    def of_ids(self, ids: Any) -> Prompt:
        """Return token ids as a prompt.

        Raises:
            TypeError: if one of them is not an integer.
            ValueError: if there are none, or one is outside the vocabulary.
        """
        return Prompt(inputs.token_ids(ids, self._engine.vocab_size))

    def _raw(self, text: str, options: PromptOptions) -> Preparation:
        _refuse_template_options(options)
        parts = messages.arguments("image", options.images) + messages.arguments("video", options.videos)
        return self._placed(text, parts, options)

    def _refuse_media_tokens(self, texts: Iterable[tuple[str, str]]) -> None:
        """Raise ValueError if a text would stand for an image or a video when encoded.

        Args:
            texts: each with the name of its place.
        """
        if not self._engine.vision:
            return
        for text, where in texts:
            for kind, pad in self._tokens.pads.items():
                if pad in text:
                    raise ValueError(f"{where}: the text contains '{pad}', which stands for {_A[kind]}")

    def _placed(self, text: str, parts: Sequence[MediaPart], options: PromptOptions) -> Preparation:
        """Encode a text, with room for what belongs in its places."""
        if not self._engine.vision:
            for part in parts:
                raise ValueError(f"{part.where}: {self._name} has no vision tower: it reads text only")
            return Preparation(Prompt(self._tokenizer().encode(text)))
        placeholders.check_counts(text, [part.kind for part in parts], self._tokens)
        parts = placeholders.in_order(text, parts, self._tokens)
        start = time.perf_counter()
        prepared = self._all_prepared(parts, options.media)
        seconds = time.perf_counter() - start if parts else 0.0
        shapes = [_shape(part, medium) for part, medium in zip(parts, prepared, strict=True)]
        text = placeholders.expand_text(text, shapes, self._tokens, options.video_prompt)
        ids, starts = placeholders.expand_ids(self._tokenizer().encode(text), shapes, self._tokens)
        placed = [
            PlacedMedia(part.kind, medium, tuple(first), part.where)
            for part, medium, first in zip(parts, prepared, starts, strict=True)
        ]
        return Preparation(Prompt(ids, tuple(placed)), seconds)

    def _all_prepared(
        self, parts: Sequence[MediaPart], options: MediaOptions
    ) -> list[PreparedImage | PreparedVideo]:
        """Read images and open videos, but no more of them than the context could hold."""
        prepared, tokens, limit = [], 0, self._engine.context_length
        for part in parts:
            prepared.append(self._prepared(part, options))
            tokens += prepared[-1].tokens
            if tokens > limit:
                raise ContextError(
                    f"context is full: images and videos up to {part.where} take {tokens} tokens, "
                    f"the limit is {limit}"
                )
        return prepared

    def _prepared(self, part: MediaPart, options: MediaOptions) -> PreparedImage | PreparedVideo:
        arguments = options.updated(part.options).of(part.kind)
        if part.kind == "image":
            return prepare_image(part.source, self._image_settings, where=part.where, **arguments)
        return prepare_video(part.source, self._video_settings, where=part.where, **arguments)

    @cached_property
    def _tokens(self) -> MediaTokens:
        return MediaTokens.read(self._engine.vision or {}, self._tokenizer())

    @cached_property
    def _image_settings(self) -> ImageSettings:
        return self._fitting(ImageSettings.read(self._engine.side_file))

    @cached_property
    def _video_settings(self) -> VideoSettings:
        return self._fitting(VideoSettings.read(self._engine.side_file))

    def _fitting(self, settings: _Settings) -> _Settings:
        """Return settings of a processor, if its patches are those of the vision tower.

        Raises:
            CheckpointError: if they are not.
        """
        vision = self._engine.vision or {}
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(settings, name) != vision[name]:
                raise CheckpointError(
                    f"{settings.FILE}: '{name}' is {getattr(settings, name)}, in config.json {vision[name]}"
                )
        return settings


_A = {"image": "an image", "video": "a video"}


def _refuse_template_options(options: PromptOptions) -> None:
    for name in options.used_by_template():
        raise ValueError(f"{name}: only messages go through a chat template, not text or token ids")


def _shape(part: MediaPart, prepared: PreparedImage | PreparedVideo) -> Shape:
    _, rows, columns = prepared.grid_thw
    tokens = rows * columns // prepared.settings.merge_size**2
    if isinstance(prepared, PreparedImage):
        return Shape(part.kind, tokens)
    return Shape(part.kind, tokens, [timestamp_text(seconds) for seconds in prepared.timestamps])
