"""A toy engine that answers every prompt with the tokens it was told to: the Python side, tested alone."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from edgewise import ContextError, Model
from edgewise.model import MEDIA_CACHE_BYTES
from edgewise.options import SamplingOptions

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]
MEDIA = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
END_OF_TEXT, IM_START, IM_END, THINK, END_THINK = range(256, 261)
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = range(261, 265)
VOCAB_SIZE = 272
HIDDEN_SIZE = 4
DEPTH = 2
VISION = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "in_channels": 3,
    "image_token_id": IMAGE_PAD,
    "video_token_id": VIDEO_PAD,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "hidden_size": HIDDEN_SIZE,
    "depth": DEPTH,
}
CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type in ('image', 'video') %}<|vision_start|><|{{ p.type }}_pad|><|vision_end|>"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n" + CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def byte_tokenizer() -> bytes:
    """A `tokenizer.json` without merges: token 0..255 is the byte of that value."""
    plain = [byte for byte in range(256) if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE]
    other = [byte for byte in range(256) if byte not in plain]
    vocab = {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(other)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(ADDED)
    tokenizer.add_special_tokens(MEDIA)
    return tokenizer.to_str().encode()


def ids_of(text: str) -> list[int]:
    """The ids of plain text in the byte tokenizer."""
    return list(unicodedata.normalize("NFC", text).encode())


def side_files(**changes: Any) -> dict[str, bytes]:
    """The small files of a chat model; a keyword such as `generation_config` replaces one of them."""
    files: dict[str, Any] = {
        "tokenizer.json": byte_tokenizer(),
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
        "generation_config.json": {"eos_token_id": [IM_END, END_OF_TEXT], "do_sample": False},
        "chat_template.jinja": TEMPLATE.encode(),
    }
    names = {name.split(".")[0]: name for name in files}
    files |= {names[stem]: value for stem, value in changes.items()}
    return {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in files.items()
        if value is not None
    }


class FakeFeatures:
    """What the fake tower makes of a frame group: the mean of its pixels."""

    def __init__(self, pixel_values: NDArray[np.float32], grid_hw: tuple[int, int]) -> None:
        rows, columns = grid_hw
        assert pixel_values.shape == (rows * columns, 1536)
        self.grid_hw = grid_hw
        self.tokens = rows * columns // 4
        self.nbytes = self.tokens * HIDDEN_SIZE * 4
        self.mean = float(pixel_values.mean())


class FakeSequence:
    """Remembers what was appended, and answers as its engine says."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.appended: list[list[int]] = []
        self.media: list[tuple[int, FakeFeatures]] = []
        self.reserved = 0

    def append(self, ids: Sequence[int], media: Sequence[tuple[int, FakeFeatures]] = ()) -> None:
        if len(self) + len(ids) > self.engine.context_length:
            raise ContextError("context is full")
        self.engine.before_append(self)
        self.media += [(len(self) + start, features) for start, features in media]
        self.appended.append(list(ids))

    def work(
        self,
        ids: Sequence[int],
        media: Sequence[tuple[int, FakeFeatures]] | None = None,
        sampler: FakeSampler | None = None,
        places: Sequence[int] = (),
    ) -> FakeWork:
        assert not places, "the fake model has no cache to keep states in"
        return FakeWork(self, ids, media or (), sampler)

    def reserve(self, tokens: int) -> None:
        self.reserved = tokens

    def next_token(self) -> int:
        """The token after the last one: the answer in order, then the end."""
        position = len(self.appended) - 1
        answer = self.engine.answer
        return answer[position] if position < len(answer) else IM_END

    def __len__(self) -> int:
        return sum(map(len, self.appended))


class FakeSampler:
    """Takes the token its sequence wants; keeps its arguments and what it observed."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.observed: list[tuple[list[int], bool]] = []

    def observe(self, ids: Sequence[int], generated: bool = False) -> None:
        self.observed.append((list(ids), generated))

    def sample(self, sequence: FakeSequence) -> tuple[int, float, list[tuple[int, float]]]:
        token_id = sequence.next_token()
        count = self.options["logprobs"] or 0
        return token_id, -0.5, [(token_id + i, -0.5 - i) for i in range(count)]


class FakeWork:
    """What a `FakeSequence` is to append, and the sampler behind it."""

    def __init__(
        self,
        sequence: FakeSequence,
        ids: Sequence[int],
        media: Sequence[tuple[int, FakeFeatures]],
        sampler: FakeSampler | None,
    ) -> None:
        self.sequence, self.ids, self.media, self.sampler = sequence, ids, media, sampler
        self.left = len(ids)
        self.finished = False
        self.outcome: Any = None

    def do(self) -> None:
        try:
            if self.ids:
                self.sequence.append(self.ids, self.media)
            self.outcome = None if self.sampler is None else self.sampler.sample(self.sequence)
        except ValueError as error:
            self.outcome = error
        self.left, self.finished = 0, True

    def result(self) -> Any:
        if isinstance(self.outcome, ValueError):
            raise self.outcome
        return self.outcome

    def kept(self) -> list[FakeSequence]:
        return []

    def abandon(self) -> None:
        self.finished = True


class FakeBatch:
    """Does all of each work in one step."""

    pass_tokens = 1000

    def step(self, works: Sequence[tuple[FakeWork, int]]) -> None:
        for work, _ in works:
            work.do()


class FakeEngine:
    """Answers every prompt with `answer`, then ends."""

    def __init__(
        self,
        answer: str | Sequence[int] = "Hello.",
        files: dict[str, bytes] | None = None,
        context_length: int = 1000,
        config: dict[str, Any] | None = None,
        vision: dict[str, int] | None = VISION,
    ) -> None:
        self.answer = ids_of(answer) if isinstance(answer, str) else list(answer)
        self.files = side_files() if files is None else files
        self.context_length = context_length
        self.vocab_size = VOCAB_SIZE
        self.threads = 2
        self.config = json.dumps(config or {"model_type": "qwen3_5"})
        self.sequences: list[FakeSequence] = []
        self.interrupt_at: int | None = None
        self.vision = vision
        self.encoded: list[FakeFeatures] = []
        self.before_encode: Callable[[], None] = lambda: None

    def encode(
        self,
        pixel_values: NDArray[np.float32],
        grid_hw: tuple[int, int],
        progress: Callable[[int, int, str], None] | None = None,
    ) -> FakeFeatures:
        self.before_encode()
        for layer in range(DEPTH):
            if progress is not None:
                progress(layer + 1, DEPTH, f"block{layer}")
        self.encoded.append(FakeFeatures(pixel_values, grid_hw))
        return self.encoded[-1]

    def side_file(self, name: str) -> bytes | None:
        return self.files.get(name)

    def sequence(self) -> FakeSequence:
        self.sequences.append(FakeSequence(self))
        return self.sequences[-1]

    def batch(self) -> FakeBatch:
        return FakeBatch()

    def before_append(self, sequence: FakeSequence) -> None:
        """Stands for Ctrl-C while a token is computed."""
        if self.interrupt_at is not None and len(sequence.appended) == self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt

    def logits(
        self, ids: Sequence[int], media: Sequence[tuple[int, FakeFeatures]] = ()
    ) -> NDArray[np.float32]:
        """Zeros, but where media begin the mean of their pixels."""
        logits = np.zeros((len(ids), self.vocab_size), np.float32)
        for start, features in media:
            logits[start] = features.mean
        return logits

    def trace(
        self, ids: Sequence[int], media: Sequence[tuple[int, FakeFeatures]] = ()
    ) -> dict[str, NDArray[np.float32]]:
        return {"logits": self.logits(ids, media)}

    def info(self) -> dict[str, Any]:
        return INFO


class FakeModel(Model):
    """A model on a fake engine, with the fake sampler."""

    def __init__(
        self,
        answer: str | Sequence[int] = "Hello.",
        media_cache_bytes: int = MEDIA_CACHE_BYTES,
        **engine: Any,
    ) -> None:
        self.engine = FakeEngine(answer, **engine)
        self.samplers: list[FakeSampler] = []
        super().__init__(cast("Any", self.engine), "fake", media_cache_bytes)

    def _sampler(self, options: SamplingOptions) -> Any:
        self.samplers.append(FakeSampler(**dataclasses.asdict(options)))
        return self.samplers[-1]


INFO: dict[str, Any] = {
    "model_type": "qwen3_5",
    "parameters": 3_200_000,
    "formats": {"int4": {"tensors": 20, "bytes": 1_500_000}, "f32": {"tensors": 30, "bytes": 20_000}},
    "weight_bytes": 1_520_000,
    "file_bytes": 1_600_000,
    "expert_bytes": 0,
    "expert_bytes_per_token": 0,
    "prefetch": False,
    "state_bytes": 50_000,
    "kv_bytes_per_token": 512,
    "kv_bytes_per_token_by_dtype": {"f32": 1024, "f16": 512, "bf16": 512, "int8": 272},
    "tier": "portable",
    "threads": 2,
    "context_length": 32768,
    "yarn_factor": None,
    "kv_dtype": "bf16",
    "thread_report": {"affinity": 4, "quota": 2, "performance_cores": 4, "chosen": 2},
}
