"""A checkpoint ready to use: native engine, tokenizer, chat template and the checkpoint's own defaults."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise import cache as quantised_cache
from edgewise import chat, checks, eos, generation, gguf, hub, inputs, many, saving
from edgewise._native import (
    CheckpointError,
    ContextError,
    Engine,
    InputStatistics,
    Sampler,
    Work,
    available_memory,
)
from edgewise.chat import ChatTemplate, Message
from edgewise.checkpoints import Markers
from edgewise.checks import Range
from edgewise.encoder import Encoded, Encoder
from edgewise.locks import ForkSafeLock
from edgewise.options import (
    GENERATION_CONFIG,
    GenerationArguments,
    GenerationOptions,
    OnFull,
    PromptArguments,
    PromptOptions,
    SamplingOptions,
    checkpoint_defaults,
)
from edgewise.preparation import Preparer
from edgewise.progress import Progress, shown
from edgewise.prompt import Prompt
from edgewise.reading import Reader, Text
from edgewise.results import Piece, Result
from edgewise.scheduler import MAX_BATCH, MAX_REQUESTS, Scheduler
from edgewise.sequence import Sequence as TextSequence
from edgewise.spill import Spill
from edgewise.tokenizer import FILE as TOKENIZER_FILE
from edgewise.tokenizer import Tokenizer
from edgewise.window import Window

if TYPE_CHECKING:
    from typing_extensions import Unpack

DType = Literal["auto", "f32", "bf16", "int8", "int4"]
TokenIds: TypeAlias = Sequence[SupportsIndex] | NDArray[np.integer[Any]]
PromptInput: TypeAlias = str | Sequence[Message] | TokenIds | Prompt

MEDIA_CACHE_BYTES = 64 * 2**20
"""Default of `media_cache_bytes`: 16 images of 1024 tokens at the 0.8B's hidden size of 1024."""
SPILL_BYTES = 8 * 2**30
"""Default of `spill_bytes`."""
CACHE_SHARE = 8
"""The cache of states may take one part in so many of the memory that there is when a model is opened,"""
MOST_CACHE_BYTES = 4 * 2**30
"""but no more than this,"""
UNKNOWN_CACHE_BYTES = 256 * 2**20
"""and this where nobody can tell how much memory there is."""


class Model:
    """A language model on this computer's CPU.

    >>> from edgewise import Model
    >>> model = Model.from_pretrained("demo")
    >>> model.generate("What is the capital of France?", enable_thinking=False).text
    'Paris.'

    One model may be used by several threads at once: each call has a text of its own, and those that go on at
    the same time share passes over the weights. No answer depends on what else is computed.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        media_cache_bytes: int = MEDIA_CACHE_BYTES,
        cache_bytes: int = 0,
        spill_dir: str | os.PathLike[str] | None = None,
        spill_bytes: int = SPILL_BYTES,
        max_batch: int = MAX_BATCH,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        """Wrap an open engine; `Model.from_pretrained` is the usual way.

        Raises:
            CheckpointError: if a side file such as `generation_config.json` or the chat template is unusable.
            TypeError, ValueError: if `media_cache_bytes`, `cache_bytes` or `spill_bytes` is not a whole
                number from 0, or `max_batch` or `max_requests` not one from 1, or if there is a `spill_dir`
                and no cache that could spill.
            OSError: if there is no `spill_dir` and it cannot be made.
        """
        self._engine = engine
        self._lock = ForkSafeLock()
        self._loaded_tokenizer: Tokenizer | None = None
        self.name = name
        """What the model was opened as."""
        self.generation_config: dict[str, Any] = chat.read_json(engine.side_file, GENERATION_CONFIG)
        """The checkpoint's `generation_config.json`, empty if it has none."""
        self._defaults = checkpoint_defaults(self.generation_config)
        self.chat_template = ChatTemplate.read(engine.side_file)
        """`None` for a checkpoint without one."""
        self._encoder = Encoder(engine, int(Range(int, 0).check("media_cache_bytes", media_cache_bytes)))
        cache_bytes = int(Range(int, 0).check("cache_bytes", cache_bytes))
        max_batch = int(Range(int, 1).check("max_batch", max_batch))
        max_requests = int(Range(int, 1).check("max_requests", max_requests))
        self._scheduler = Scheduler(engine, max_batch, max_requests)
        self._reader = Reader(engine, self._encoder, cache_bytes, self._markers, self._scheduler)
        spill_bytes = int(Range(int, 0).check("spill_bytes", spill_bytes))
        if spill_dir is not None:
            if not cache_bytes:
                raise ValueError("spill_dir: without a cache in memory (cache_bytes is 0) nothing is spilled")
            self._reader.spill = Spill(Path(spill_dir), spill_bytes, engine, lambda: self._fingerprint)
        self._preparer = Preparer(engine, name, self.chat_template, lambda: self.tokenizer)

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
        media_cache_bytes: int = MEDIA_CACHE_BYTES,
        cache_bytes: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        spill_bytes: int = SPILL_BYTES,
        max_batch: int = MAX_BATCH,
        max_requests: int = MAX_REQUESTS,
        yarn_factor: float | None = None,
        revision: str | None = None,
        large_pages: bool | None = None,
    ) -> Model:
        """Open a checkpoint.

        Args:
            path_or_id: a folder as Hugging Face lays it out, a file written by `edgewise quantize`, a GGUF
                file (any one of several that are one model), the id of a repository on the Hugging Face hub
                such as `Qwen/Qwen3.5-0.8B`, or `demo` for the small model that comes with this package. Of a
                repository, only the files that are needed are fetched, once, into the hub's own cache; behind
                the id of one with GGUF files a colon and a part of a name choose one, `org/name:Q4_K_M`.
            dtype: how the large matrices are held. `auto` takes a file of `edgewise quantize` as it is, turns
                the blocks of a GGUF file into the nearest format (Q4_0, Q4_1 and Q4_K into INT4, symmetric or
                not, others into INT8), and converts any other checkpoint to INT4 by the recipe `int4`, which
                keeps some tensors in INT8 or f32. What GPTQ, AWQ, compressed-tensors, FP8 or MLX quantised
                keeps its own levels, in INT4 or INT8, and what they left unpacked is held in INT8; `int8` and
                `int4` convert by the recipe of that name, `bf16` to bf16. `f32` keeps the exact values: what
                is stored in f32, f16 or bf16 as it is, everything smaller widened.
            threads: how many to compute with. `None` takes what suits this computer, see `edgewise info`.
            kv_dtype: how keys and values of past tokens are held: `bf16`, `f16` (finer, but long prompts take
                longer), `f32`, `int8` (about half the memory of bf16, and faster in long texts), or `auto`,
                which is f32 beside a `dtype` of `f32` and else bf16.
            recipe: which tensors get which format; the name of a recipe or a file, in place of `dtype`.
            progress: `True` draws a bar on stderr; a function is called with (bytes done, bytes in all,
                name), first for files that are fetched, then for tensors. `None` leaves fetching to the bars
                of the hub's library.
            cache: keep the converted weights in the user's cache folder, and open that file the next time;
                with a `dtype` of `int4` or `int8`, a recipe, or a GGUF file.
            media_cache_bytes: how much memory may hold what the vision tower made of the images and frames
                used last, so that a picture seen before is not encoded again; 0 keeps nothing.
            cache_bytes: how much memory may hold states after the texts read last, so that a text that begins
                like one of them is computed only from where they part; 0 keeps nothing. `None` is an eighth
                of the memory that there is now, 4 GiB at most.
            spill_dir: a folder for states that `cache_bytes` has no room for. Later texts, also of other
                processes with the same model, are taken up from there. Writing takes time of the call that
                needs the room. `None` writes nothing. Only use a folder that nobody else can write to.
            spill_bytes: how much that folder may hold; what was used longest ago is removed first (8 GiB).
            max_batch: how many texts share a pass over the weights at most. Of more that are generated at the
                same time, the later ones wait for their turn.
            max_requests: how many texts may be under way, those that wait and streams that are not finished
                included. One more raises `BusyError`, a RuntimeError.
            yarn_factor: extend the context to so many times its length by stretching the rotary positions
                (YaRN), as if `config.json` said so: 4 makes 1,048,576 tokens of 262,144. It holds for short
                texts too, which may lose by it, so give no more than the longest text needs. Not for a model
                whose configuration has YaRN already.
            revision: branch, tag or commit of a repository on the hub; by default its main branch.
            large_pages: whether weights move from the file into memory of large pages, where Linux has them.
                They are read faster there, but are this process's own: others with the same model share the
                file's pages only. `None` moves them a little at a time while answers are written, if memory
                could hold them twice; `True` all at once when the model is opened; `False` never.

        Raises:
            OSError: if there is no such checkpoint, here or on the hub, or a file cannot be read.
            CheckpointError: if a file of the checkpoint is unusable.
            ValueError: for an argument that is not one of those above, a `large_pages` of `True` where the
                system has none, `yarn_factor` for a model that has
                YaRN already, `revision` for something that is not on the hub, or a repository of which it is
                unclear which file is meant.

        >>> from edgewise import Model
        >>> Model.from_pretrained("demo").context_length
        32768
        >>> Model.from_pretrained("demo", yarn_factor=2.5).context_length
        81920
        """
        name = str(path_or_id)
        threads = checks.threads(threads)
        yarn_factor = checks.yarn_factor(yarn_factor)
        with shown(progress, "fetching") as report:
            path = hub.resolve(path_or_id, revision, report)
        with shown(progress, gguf.opening_title(path)) as report:
            if cache:
                recipe = gguf.cached_recipe(path, dtype, recipe)
                path = quantised_cache.converted(path, dtype, recipe, threads, report)
                dtype, recipe = "auto", None
            engine = Engine.open(
                path, dtype, kv_dtype, recipe, threads, report, yarn_factor, large_pages=large_pages
            )
        cache_bytes = _share() if cache_bytes is None else cache_bytes
        return cls(
            engine, name, media_cache_bytes, cache_bytes, spill_dir, spill_bytes, max_batch, max_requests
        )

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
        """The checkpoint's `config.json` as it stands there, whatever `yarn_factor` says."""
        return chat.parse_json(self._engine.config, "config.json")

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

    def generate(self, prompt: PromptInput, **options: Unpack[GenerationArguments]) -> Result:
        """Write an answer or a continuation.

        A string is asked as a question: it becomes one message of the user, if the checkpoint has a chat
        template. A list of messages is a conversation. With `raw=True` a string, and always a list of token
        ids or a `Prompt`, is continued as it stands. Images and videos are given in messages or with
        `images` and `videos`, see `prepare`.

        An argument left out takes the value of the checkpoint's `generation_config.json`, else the one named
        here. Without `do_sample`, giving `temperature`, `top_k`, `top_p` or `min_p` asks for random sampling;
        a `temperature` of 0 takes the likeliest token each time, as does a checkpoint that says nothing of
        sampling.

        Args:
            prompt: the question, conversation, token ids or what `prepare` returned.
            **options: those of `prepare`, and any of these.

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
                progress: shows how far images and videos are encoded: `True` draws a bar on stderr if that
                    takes long; a function is called with (tokens done, tokens in all, name), and may raise.
                on_full: `error` refuses a text that is longer than the context; `shift` drops the oldest
                    turns of a conversation (of other text: the oldest tokens), before the answer or in the
                    middle of it, and says so in `shifts` of the result. What follows is computed as if the
                    dropped part had never been there (`error`).
                keep_first: what a shift never drops: so many messages from the first one on, or tokens of a
                    text that is no conversation (the system's message; no token).
                cancel: a `threading.Event`, or anything with `is_set()`: once set, the text ends there, with
                    the finish reason `cancelled`.

        Raises:
            TypeError: for an argument that does not exist or has the wrong type.
            ValueError: for an empty or malformed prompt, or a value out of range.
            MediaError: a ValueError: for an image or a video that cannot be used.
            ContextError: if the prompt and an explicit `max_new_tokens` do not fit into the context, or, with
                `on_full="shift"`, not even what is always kept.
            BusyError: if too many texts are under way, see `max_requests` of `from_pretrained`.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> messages = [{"role": "user", "content": "Repeat: coins apples"}]
        >>> result = model.generate(messages, enable_thinking=False)
        >>> result.text, result.finish_reason
        ('coins apples', 'stop')

        >>> from PIL import Image, ImageDraw
        >>> picture = Image.new("RGB", (96, 96), "white")
        >>> ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill="red")
        >>> model.generate("Which shape do you see?", images=picture, enable_thinking=False).text
        'A circle.'
        """
        request = self._request(prompt, options)
        return generation.collect(request, self._pieces(request))

    def stream(self, prompt: PromptInput, **options: Unpack[GenerationArguments]) -> Generator[Piece]:
        """Like `generate`, but gives each token's text as soon as it is certain.

        The pieces' texts, put together, are the text that `generate` returns. The last piece has
        `finish_reason`, `usage` and `timings`. The generator may be left at any time.

        Raises:
            TypeError, ValueError, ContextError: as `generate`, at once and not with the first piece.
            BusyError: as `generate`, with the first piece.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> for piece in model.stream("Repeat: coins apples", enable_thinking=False):
        ...     print(piece.text, end="")
        coins apples
        """
        return self._pieces(self._request(prompt, options))

    def generate_many(
        self,
        prompts: Iterable[PromptInput],
        *,
        max_batch: int | None = None,
        each: Iterable[Mapping[str, Any]] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[GenerationArguments],
    ) -> list[Any]:
        """Write answers to many prompts, several at a time: they share passes over the weights.

        Each answer is what `generate` would return alone, with the same seed. Texts are begun in order, and a
        new one as soon as another has ended; those that begin like an earlier one profit from its cache.

        Args:
            prompts: any number of what `generate` takes.
            max_batch: how many of them are under way at a time, at most the model's `max_batch`, which it is
                if left out.
            each: for each prompt further options, which go before those for all.
            return_exceptions: put the error of a prompt in the place of its result and go on. Otherwise the
                first error ends all of them and is raised.
            **options: as for `generate`, for all prompts.

        Returns:
            A `Result` for each prompt, in order.

        Raises:
            TypeError: if `prompts` is no list of prompts.
            ValueError: if `max_batch` is below 1, or there are not as many `each` as prompts.
            TypeError, ValueError, ContextError, MediaError, BusyError: as `generate`, for any of the prompts.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> questions = ["Repeat: coins apples", "What is the capital of France?"]
        >>> [result.text for result in model.generate_many(questions, enable_thinking=False)]
        ['coins apples', 'Paris.']
        """
        if isinstance(prompts, str | bytes | Mapping | Prompt) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts: expected a list of prompts, got {type(prompts).__name__}")
        most = self._scheduler.max_batch
        if max_batch is not None:
            most = min(most, int(Range(int, 1).check("max_batch", max_batch)))
        prompts = list(prompts)
        further = [{}] * len(prompts) if each is None else list(each)
        if len(further) != len(prompts):
            raise ValueError(f"each: there are {len(further)} for {len(prompts)} prompts")

        def begin(index: int) -> tuple[generation.Request, Generator[Work | Piece, None, None]]:
            request = self._request(prompts[index], {**options, **further[index]})
            return request, self._steps(request)

        return many.results(self._scheduler, begin, len(prompts), most, return_exceptions)

    def prepare(self, prompt: PromptInput, **options: Unpack[PromptArguments]) -> Prompt:
        """Return the tokens, positions and pixels that a prompt becomes, without computing anything on them.

        Images and videos stand in messages as parts of the content: `{"type": "image", "image": source}`, or
        with `path`, `base64`, or `url` in place of `image`, or as in OpenAI's interface `{"type":
        "image_url", "image_url": {"url": "data:image/png;base64,..."}}`; likewise with `video`. What is named
        as a url must be a data URI: nothing is downloaded, nor is a file read. A part may have options of its
        own, such as `{"type": "video", "path": "a.mp4", "fps": 1}`. Parts without a source are filled from
        `images` and `videos`, in order.

        Beside a text, images and then videos come before it in the user's message; with `raw=True` the text
        holds their places itself, each written `<|vision_start|><|image_pad|><|vision_end|>` (or
        `<|video_pad|>`). Elsewhere a text must not contain these pads.

        Args:
            prompt: as for `generate`.
            **options: any of these.

                images: an image or a list of images: paths, data URIs, bytes, Pillow images, or arrays
                    [height, width, 3] of uint8 or of floats from 0 to 1, in the order red, green, blue.
                videos: a video or a list of videos: paths, data URIs, bytes, arrays [frames, height,
                    width, 3], or lists of frames. A list of frames is one video: of Pillow images, of arrays
                    [height, width, 3], of paths that end in .png, .jpg and the like, of the bytes of JPEG
                    files. Several such videos are a list of lists.
                min_pixels: enlarge images and videos to so many pixels, over all sampled frames of a video
                    (the checkpoint's).
                max_pixels: reduce them to so many (the checkpoint's, but 1,048,576 for an image and 8,388,608
                    for a video at most). A token is 1024 pixels of an image, 2048 of a video.
                fps: frames taken of each second of a video (2).
                num_frames: frames taken in all, in place of `fps`; up to 4096.
                max_frames: the most frames taken by `fps` (768); up to 4096.
                source_fps: frames a second of a video that does not tell, such as a list of frames (24), or
                    in place of what a file says.
                video_prompt: `flat` writes each pair of frames after its time; `nested` puts start and end
                    tokens around all of that once more, as transformers 5 does.
                raw: continue a string as it stands (False).
                tools: functions the model may call, as JSON schemas in OpenAI's shape.
                enable_thinking: whether to think before answering; left out, the chat template decides.
                chat_template_kwargs: further variables for the chat template.

        Raises:
            TypeError: for an argument that does not exist or has the wrong type.
            ValueError: for an empty or malformed prompt, a value out of range, a count of images or videos
                other than that of their places, or any of them for a model without a vision tower.
            MediaError: a ValueError: for an image or a video that cannot be used.
            ContextError: if images and videos alone take more tokens than the context holds.

        >>> from PIL import Image
        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> part = {"type": "image", "image": Image.new("RGB", (96, 96), "white")}
        >>> messages = [{"role": "user", "content": [part, {"type": "text", "text": "Hello!"}]}]
        >>> prompt = model.prepare(messages, enable_thinking=False)
        >>> len(prompt), prompt.rope_delta
        (25, -6)
        """
        return self._preparer.prepare(prompt, PromptOptions.resolve(options)).prompt

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
        return self._preparer.render(
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )

    def logits(self, prompt: TokenIds | Sequence[Message] | Prompt) -> NDArray[np.float32]:
        """Return the scores of every possible next token after each token of a text.

        Args:
            prompt: token ids, or what `prepare` returns, or messages, which are prepared without options.

        Returns:
            Logits [tokens, vocab]; row i scores the token that follows token i.

        Raises:
            ValueError: if there are no tokens, or one is outside the vocabulary.
            ContextError: if there are more tokens than the context holds.

        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> model.logits(model.tokenizer.encode("Hello!")).shape[1] == model.vocab_size
        True
        """
        ids, media = self._encoded(prompt)
        return self._engine.logits(ids, media)

    def trace(self, prompt: TokenIds | Sequence[Message] | Prompt) -> dict[str, NDArray[Any]]:
        """Return the arrays between the layers while a text is read, by name; see `logits`."""
        ids, media = self._encoded(prompt)
        return self._engine.trace(ids, media)

    def input_statistics(
        self, token_ids: TokenIds, window: int, progress: Progress | None = None
    ) -> InputStatistics:
        """Return what the matrices of the text model read over a text, for `edgewise quantize --calibrate`.

        Args:
            token_ids: the text. Windows of it are read each on its own.
            window: tokens of a window.
            progress: called with (tokens done, tokens in all, "calibrating") before each window.

        Raises:
            ValueError: if a token is outside the vocabulary, or the window is empty.
            ContextError: if the window is larger than the context.
        """
        return self._engine.input_statistics(inputs.token_ids(token_ids, self.vocab_size), window, progress)

    def sequence(self) -> TextSequence:
        """Return an empty text to append to; it can be continued, copied, cut back and saved."""
        return TextSequence(self, self._reader.text())

    def load_sequence(self, path: str | os.PathLike[str]) -> TextSequence:
        """Read a sequence that `Sequence.save` wrote.

        Raises:
            OSError: if there is no such file, or it cannot be read.
            CheckpointError: if it is no saved sequence, is damaged or cut short, or was saved with another
                model or other formats of its weights or KV cache.

        >>> import tempfile
        >>> from edgewise import Model
        >>> model = Model.from_pretrained("demo")
        >>> sequence = model.sequence()
        >>> sequence.append([5, 6, 7])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sequence.save(folder + "/text.safetensors")
        ...     model.load_sequence(folder + "/text.safetensors").token_ids
        [5, 6, 7]
        """
        return TextSequence(self, saving.load(self._reader, self._fingerprint, os.fspath(path)))

    @property
    def cached_bytes(self) -> int:
        """Bytes that the states of earlier texts take now, at most `cache_bytes` of `from_pretrained`."""
        return 0 if self._reader.cache is None else self._reader.cache.nbytes

    def clear_cache(self) -> None:
        """Forget the states of earlier texts. Sequences stay, but cutting them back takes longer."""
        if self._reader.cache is not None:
            self._reader.cache.clear()

    def spill_cache(self) -> int:
        """Write all states of earlier texts without pictures to `spill_dir`, for a later process.

        Returns:
            How many texts are there after it; 0 without a `spill_dir`.

        >>> import tempfile
        >>> from edgewise import Model
        >>> folder = tempfile.TemporaryDirectory()
        >>> model = Model.from_pretrained("demo", spill_dir=folder.name)
        >>> question = "Repeat: " + "coins apples " * 20
        >>> result = model.generate(question)
        >>> model.spill_cache() > 0
        True
        >>> later = Model.from_pretrained("demo", spill_dir=folder.name)
        >>> later.generate(question).usage.cached_tokens > 0
        True
        >>> folder.cleanup()
        """
        return self._reader.spill_all()

    @cached_property
    def _fingerprint(self) -> str:
        """What tells this model, with the formats of its weights and KV cache, from others."""
        return self._engine.fingerprint()

    def _save(self, text: Text, path: str) -> None:
        saving.save(text, self._encoder, self._fingerprint, path)

    def _markers(self) -> Markers:
        """Tokens of the chat template by which borders of messages are found."""
        tokenizer = self._tokenizer_or_none()
        if tokenizer is None:
            return Markers()
        return chat.markers(tokenizer)

    @cached_property
    def _message_ending(self) -> list[int]:
        """The tokens with which the chat template ends a message."""
        content = "x-y-z"
        rendered = self.render([{"role": "user", "content": content}], add_generation_prompt=False)
        ending = self.tokenizer.encode(rendered.rpartition(content)[2])
        if not ending:
            raise CheckpointError(f"{self.name}: the chat template does not end its messages")
        return ending

    def _ending_of(self, ids: list[int]) -> list[int]:
        """Return the tokens that end the last message of a text, if there is one that has not ended."""
        start = self._reader.markers.message
        if start is None or start not in ids:
            return []
        message = ids[len(ids) - 1 - ids[::-1].index(start) :]
        ending = self._message_ending
        if ending[0] not in message:
            return ending
        return ending[1:] if message[-1] == ending[0] else []

    def _tokenizer_or_none(self) -> Tokenizer | None:
        with self._lock:
            if self._loaded_tokenizer is None:
                data = self._engine.side_file(TOKENIZER_FILE)
                if data is not None:
                    self._loaded_tokenizer = Tokenizer(data, self.vocab_size)
            return self._loaded_tokenizer

    def _encoded(self, prompt: TokenIds | Sequence[Message] | Prompt) -> tuple[list[int], Encoded]:
        """Return a prompt's token ids, and the features of its images and videos."""
        if not isinstance(prompt, Prompt):
            are_messages = inputs.are_messages(prompt)
            prompt = self.prepare(prompt) if are_messages else self._preparer.of_ids(prompt)
        return inputs.token_ids(prompt.token_ids, self.vocab_size), self._encoder.encode(prompt)

    def _prompt_of_ids(self, ids: TokenIds) -> Prompt:
        return self._preparer.of_ids(ids)

    def _request(self, prompt: PromptInput, arguments: Mapping[str, Any]) -> generation.Request:
        start = time.perf_counter()
        options = GenerationOptions.resolve(arguments, self._defaults)
        preparation = self._preparer.prepare(prompt, options.prompt)
        prepared = preparation.prompt
        prompt_ids = inputs.token_ids(prepared.token_ids, self.vocab_size)
        prepared = Prompt(prompt_ids, prepared.media)
        window = self._window(options.on_full, options.keep_first)
        if window is not None:
            prepared = window.prompt(prepared, options.max_new_tokens)
        return replace(
            self._request_after(prepared.token_ids, options),
            prompt=prepared,
            window=window,
            seconds_before=time.perf_counter() - start,
            media_seconds_before=preparation.media_seconds,
        )

    def _continuation(self, ids: list[int], arguments: Mapping[str, Any]) -> generation.Request:
        """Return a request to go on after `ids`, which have been read."""
        options = GenerationOptions.resolve(arguments, self._defaults)
        window = self._window(options.on_full, options.keep_first)
        return replace(self._request_after(ids, options), window=window)

    def _window(self, on_full: OnFull, keep_first: int | None) -> Window | None:
        """Return what makes room in a full context, `None` if that is an error."""
        if on_full == "error":
            return None
        return Window(self.context_length, keep_first, self._reader.markers)

    def _request_after(self, ids: Sequence[int], options: GenerationOptions) -> generation.Request:
        tokenizer = self._tokenizer_for(options)
        return generation.Request(
            prompt_ids=ids,
            max_new_tokens=self._room(len(ids), options),
            stop_ids=self._stop_ids(options, tokenizer),
            options=options,
            tokenizer=tokenizer,
        )

    def _pieces(self, request: generation.Request) -> Generator[Piece]:
        return self._scheduler.stream(self._steps(request), request.options.cancel)

    def _steps(self, request: generation.Request) -> Generator[Work | Piece, None, None]:
        return generation.steps(request, self._reader.text(), self._checked_sampler(request.options.sampling))

    def _checked_sampler(self, options: SamplingOptions) -> Sampler:
        checks.within_vocabulary("suppress_tokens", options.suppress, self.vocab_size)
        return self._sampler(options)

    def _check_context(self, tokens: int) -> None:
        if tokens > self.context_length:
            raise ContextError(
                f"context is full: {tokens} tokens are needed, the limit is {self.context_length}"
            )

    def _sampler(self, options: SamplingOptions) -> Sampler:
        return Sampler(self.vocab_size, **asdict(options))

    def _room(self, prompt_tokens: int, options: GenerationOptions) -> int:
        """How many tokens to generate at most."""
        if options.on_full == "shift":
            return options.max_new_tokens
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


def _share() -> int:
    """Return what the cache of states may take where nobody says."""
    available = available_memory()
    return UNKNOWN_CACHE_BYTES if available is None else min(available // CACHE_SHARE, MOST_CACHE_BYTES)
