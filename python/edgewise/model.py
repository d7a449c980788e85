"""A checkpoint ready to use: native engine, tokenizer, chat template and the checkpoint's own defaults."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from edgewise import cache as quantised_cache
from edgewise import chat, checks, eos, generation, hub, inputs
from edgewise._native import CheckpointError, ContextError, Engine, Sampler
from edgewise._native import Sequence as NativeSequence
from edgewise.chat import ChatTemplate, Message
from edgewise.options import (
    GENERATION_CONFIG,
    GenerationArguments,
    GenerationOptions,
    PromptOptions,
    SamplingOptions,
    checkpoint_defaults,
)
from edgewise.progress import Progress, shown
from edgewise.results import Piece, Result
from edgewise.tokenizer import FILE as TOKENIZER_FILE
from edgewise.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

DType = Literal["auto", "f32", "bf16", "int8", "int4"]
Prompt = str | Sequence[Message] | Sequence[SupportsIndex] | NDArray[np.integer[Any]]


class Model:
    """A language model on this computer's CPU.

    >>> from edgewise import Model
    >>> model = Model.from_pretrained("demo")
    >>> model.generate("What is the capital of France?", enable_thinking=False).text
    'Paris.'

    One model may be used by several threads at once: each call has a sequence of its own, and the engine
    computes for one of them at a time.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        """Wrap an open engine; `Model.from_pretrained` is the usual way.

        Raises:
            CheckpointError: if a side file such as `generation_config.json` or the chat template is unusable.
        """
        self._engine = engine
        self._lock = threading.Lock()
        self._loaded_tokenizer: Tokenizer | None = None
        self.name = name
        """What the model was opened as."""
        self.generation_config: dict[str, Any] = chat.read_json(engine.side_file, GENERATION_CONFIG)
        """The checkpoint's `generation_config.json`, empty if it has none."""
        self._defaults = checkpoint_defaults(self.generation_config)
        self.chat_template = ChatTemplate.read(engine.side_file)
        """`None` for a checkpoint without one."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        dtype: DType = "auto",
        threads: int | None = None,
        *,
        kv_dtype: str = "auto",
        recipe: str | None = None,
        progress: Progress | bool | None = None,
        cache: bool = False,
    ) -> Model:
        """Open a checkpoint.

        Args:
            path_or_id: a folder as Hugging Face lays it out, a file written by `edgewise quantize`, the id
                of a repository on the Hugging Face hub such as `Qwen/Qwen3.5-0.8B`, or `demo` for the small
                model that comes with this package.
            dtype: how the large matrices are held: as the checkpoint stores them (`auto`), or converted while
                opening.
            threads: how many to compute with. `None` takes what suits this computer, see `edgewise info`.
            kv_dtype: how keys and values of past tokens are held.
            recipe: which tensors get which format; the name of a recipe or a file. `None` follows `dtype`.
            progress: `True` draws a bar on stderr; a function is called with (bytes done, bytes in all,
                name).
            cache: keep the converted weights in the user's cache folder, and open that file the next time.

        Raises:
            OSError: if there is no such checkpoint, here or on the hub, or a file cannot be read.
            CheckpointError: if a file of the checkpoint is unusable.
            ValueError: for an argument that is not one of those above.
        """
        name = str(path_or_id)
        threads = checks.threads(threads)
        path = hub.resolve(path_or_id)
        with shown(progress, "opening") as report:
            if cache:
                path = quantised_cache.converted(path, dtype, recipe, threads, report)
                dtype, recipe = "auto", None
            return cls(Engine.open(path, dtype, kv_dtype, recipe, threads, report), name)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, threads={self.threads})"

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary: every token id is below."""
        return self._engine.vocab_size

    @property
    def context_length(self) -> int:
        """The most tokens that one text may have, the prompt included."""
        return self._engine.context_length

    @property
    def threads(self) -> int:
        """How many threads compute."""
        return self._engine.threads

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's `config.json`."""
        config: dict[str, Any] = json.loads(self._engine.config)
        return config

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read when it is first asked for.

        Raises:
            CheckpointError: if `tokenizer.json` is missing or unusable.
        """
        tokenizer = self._tokenizer_or_none()
        if tokenizer is None:
            raise CheckpointError(f"{self.name}: there is no {TOKENIZER_FILE}; only token ids can be used")
        return tokenizer

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens with which the model ends a text."""
        return eos.token_ids(
            self.generation_config, self.config, self._engine.side_file, self._tokenizer_or_none
        )

    def info(self) -> dict[str, Any]:
        """Parameters, formats, memory and threads, as `edgewise info` shows them."""
        return self._engine.info()

    def generate(self, prompt: Prompt, **options: Unpack[GenerationArguments]) -> Result:
        """Write an answer or a continuation.

        A string is asked as a question: it becomes one message of the user, if the checkpoint has a chat
        template. A list of messages is a conversation. With `raw=True` a string, and always a list of token
        ids, is continued as it stands.

        An argument left out takes the value of the checkpoint's `generation_config.json`, else the one named
        here. Without `do_sample`, giving `temperature`, `top_k`, `top_p` or `min_p` asks for random sampling;
        a `temperature` of 0 takes the likeliest token each time, as does a checkpoint that says nothing of
        sampling.

        Args:
            prompt: the question, conversation or token ids.
            **options: any of these.

                max_new_tokens: the most tokens to generate (512, or what the context has room for).
                do_sample: `False` takes the likeliest token each time, whatever the temperature.
                temperature: divides the logits (1).
                top_k: only the so many likeliest tokens; 0 for all (0).
                top_p: only the likeliest tokens that together have this probability (1).
                min_p: only tokens at least this fraction as likely as the likeliest (0).
                repetition_penalty: makes tokens of prompt and answer less likely when above 1 (1).
                presence_penalty: subtracted from the logit of each token of the answer so far (0).
                frequency_penalty: the same, times how often it occurred (0).
                suppress_tokens: ids never to be generated.
                seed: for the same random numbers again (a new one each time, to be found in the result).
                stop: a string, or several, that ends the text and is cut from it.
                stop_token_ids: tokens that end the text, beside the checkpoint's own.
                ignore_eos: go on after the checkpoint's own end tokens (False).
                skip_special_tokens: leave tokens such as `<|im_end|>` out of the text (True).
                logprobs: return log-probabilities: of each token, and of the so many likeliest in its place.
                raw: continue a string as it stands (False).
                tools: functions the model may call, as JSON schemas in OpenAI's shape.
                enable_thinking: whether to think before answering; left out, the chat template decides.
                chat_template_kwargs: further variables for the chat template.

        Raises:
            TypeError: for an argument that does not exist or has the wrong type.
            ValueError: for an empty or malformed prompt, or a value out of range.
            ContextError: if the prompt and an explicit `max_new_tokens` do not fit into the context.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> messages = [{"role": "user", "content": "Repeat: coins apples"}]
        >>> result = model.generate(messages, enable_thinking=False)
        >>> result.text, result.finish_reason
        ('coins apples', 'stop')
        """
        request = self._request(prompt, options)
        return generation.collect(request, self._pieces(request))

    def stream(self, prompt: Prompt, **options: Unpack[GenerationArguments]) -> Generator[Piece]:
        """Like `generate`, but gives each token's text as soon as it is certain.

        The pieces' texts, put together, are the text that `generate` returns. The last piece has
        `finish_reason`, `usage` and `timings`. The generator may be left at any time.

        Raises:
            TypeError, ValueError, ContextError: as `generate`, at once and not with the first piece.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> for piece in model.stream("Repeat: coins apples", enable_thinking=False):
        ...     print(piece.text, end="")
        coins apples
        """
        return self._pieces(self._request(prompt, options))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        r"""Return the prompt that a conversation becomes, see `ChatTemplate.render`.

        Raises:
            ValueError: if the messages are malformed, or the template refuses them.
            CheckpointError: if there is no chat template, or it is at fault.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> model.render([{"role": "user", "content": "Hello!"}], enable_thinking=False)
        '<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n'
        """
        if self.chat_template is None:
            raise CheckpointError(f"{self.name}: there is no chat template; pass a string or token ids")
        return self.chat_template.render(messages, tools, enable_thinking, add_generation_prompt, **variables)

    def logits(self, ids: Sequence[SupportsIndex] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the scores of every possible next token after each token of a text.

        Returns:
            Logits [tokens, vocab]; row i scores the token that follows `ids[i]`.

        Raises:
            ValueError: if `ids` is empty or has an id outside the vocabulary.
            ContextError: if there are more ids than the context holds.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> model.logits(model.tokenizer.encode("Hello!")).shape[1] == model.vocab_size
        True
        """
        return self._engine.logits(inputs.token_ids(ids, self.vocab_size))

    def trace(
        self, ids: Sequence[SupportsIndex] | NDArray[np.integer[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the arrays between the layers while a text is read, by name."""
        return self._engine.trace(inputs.token_ids(ids, self.vocab_size))

    def sequence(self) -> NativeSequence:
        """Return an empty text to append tokens to; `fork` copies it, `logits` scores what may follow."""
        return self._engine.sequence()

    def _tokenizer_or_none(self) -> Tokenizer | None:
        with self._lock:
            if self._loaded_tokenizer is None:
                data = self._engine.side_file(TOKENIZER_FILE)
                if data is not None:
                    self._loaded_tokenizer = Tokenizer(data, self.vocab_size)
            return self._loaded_tokenizer

    def _request(self, prompt: Prompt, arguments: Mapping[str, Any]) -> generation.Request:
        start = time.perf_counter()
        options = GenerationOptions.resolve(arguments, self._defaults)
        prompt_ids = self._prompt_ids(prompt, options.prompt)
        tokenizer = self._tokenizer_for(options)
        return generation.Request(
            prompt_ids=prompt_ids,
            max_new_tokens=self._room(len(prompt_ids), options),
            stop_ids=self._stop_ids(options, tokenizer),
            options=options,
            tokenizer=tokenizer,
            seconds_before=time.perf_counter() - start,
        )

    def _pieces(self, request: generation.Request) -> Generator[Piece]:
        checks.within_vocabulary("suppress_tokens", request.options.sampling.suppress, self.vocab_size)
        sampler = self._sampler(request.options.sampling)
        return generation.stream(request, self._engine.sequence(), sampler)

    def _sampler(self, options: SamplingOptions) -> Sampler:
        return Sampler(self.vocab_size, **asdict(options))

    def _prompt_ids(self, prompt: Prompt, options: PromptOptions) -> list[int]:
        kind = inputs.kind(prompt)
        messages = prompt
        if kind == "text" and not options.raw and self.chat_template is not None:
            kind, messages = "messages", [{"role": "user", "content": prompt}]
        if kind == "messages":
            return self._conversation_ids(messages, options)  # type: ignore[arg-type]
        for name in options.used_by_template():
            raise ValueError(f"{name}: only messages go through a chat template, not text or token ids")
        if kind == "text":
            return self.tokenizer.encode(prompt)  # type: ignore[arg-type]
        return inputs.token_ids(prompt, self.vocab_size)

    def _conversation_ids(self, messages: Sequence[Message], options: PromptOptions) -> list[int]:
        if options.raw:
            raise ValueError("raw: only a string can be continued as it stands, not messages")
        text = self.render(messages, options.tools, options.enable_thinking, **options.chat_template_kwargs)
        chat.refuse_media(messages)
        return self.tokenizer.encode(text)

    def _room(self, prompt_tokens: int, options: GenerationOptions) -> int:
        """How many tokens to generate at most."""
        room = self.context_length - prompt_tokens
        wanted = (
            min(options.max_new_tokens, max(room, 1)) if options.clip_to_context else options.max_new_tokens
        )
        if wanted > room:
            raise ContextError(
                f"context is full: {prompt_tokens} tokens of prompt and {wanted} new ones are needed, "
                f"the limit is {self.context_length}"
            )
        return wanted

    def _stop_ids(self, options: GenerationOptions, tokenizer: Tokenizer | None) -> frozenset[int]:
        """Tokens that end the text: the model's own, the caller's, and stop strings that are special tokens.

        The text of special tokens is usually skipped, so such a string would never be found in it.
        """
        checks.within_vocabulary("stop_token_ids", options.stop_token_ids, self.vocab_size)
        own = () if options.ignore_eos else self.eos_token_ids
        special = [tokenizer.special_token_id(stop) for stop in options.stop] if tokenizer else []
        return frozenset((*own, *options.stop_token_ids, *(i for i in special if i is not None)))

    def _tokenizer_for(self, options: GenerationOptions) -> Tokenizer | None:
        tokenizer = self._tokenizer_or_none()
        if tokenizer is None and options.stop:
            raise ValueError(f"stop: {self.name} has no {TOKENIZER_FILE}, so there is no text to stop at")
        return tokenizer
