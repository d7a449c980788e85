"""How fast a checkpoint opens, reads, sees and writes on this computer, and how much memory that takes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgewise import _native, checks
from edgewise.media import (
    ImageSettings,
    PreparedImage,
    PreparedVideo,
    VideoSettings,
    prepare_image,
    prepare_video,
)

SHAPES = ("0.8B", "2B", "4B", "9B")
"""Sizes of the family whose true shapes come with the package."""
MAX_SECONDS = 86_400
"""Longest video that can be measured."""
FIRST_PROMPT = 16
"""Tokens of the prompt whose first token is timed from opening the file."""
TEXT_BEFORE, TEXT_AFTER = 4, 16
"""Tokens of text around an image or video."""
TIMESTAMP = 6
"""Tokens of text before each pair of video frames: when they are shown."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MediaShape:
    """The size of an image or video to measure with."""

    width: int
    height: int
    """In pixels."""
    seconds: float | None = None
    """How long a video is, `None` for an image."""

    @classmethod
    def image(cls, text: str) -> MediaShape:
        """Read the size of an image, such as `640x480`.

        Raises:
            ValueError: if `text` does not have that form.
        """
        found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
        if found is None:
            raise ValueError(f"image: expected WIDTHxHEIGHT such as 640x480, got {text!r}")
        width, height = (checks.positive("image", int(number)) for number in found.groups())
        return cls(width, height)

    @classmethod
    def video(cls, text: str) -> MediaShape:
        """Read the size and length of a video, such as `448x448x10`.

        Raises:
            ValueError: if `text` does not have that form.
        """
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+(?:\.\d+)?)", text, re.ASCII)
        if found is None:
            raise ValueError(f"video: expected WIDTHxHEIGHTxSECONDS such as 448x448x10, got {text!r}")
        width, height = (checks.positive("video", int(number)) for number in found.groups()[:2])
        seconds = checks.Range(float, 0, MAX_SECONDS, above=True).check("video", float(found[3]))
        return cls(width, height, seconds)

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}"
        return size if self.seconds is None else f"{size}x{self.seconds:g}"


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    prompt_lengths: Sequence[int] = (512,)
    media: Sequence[MediaShape] = ()
    new_tokens: int = 64
    rounds: int = 3
    dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class MeasuredMedia:
    """From the pixels of an image or video, in memory, to the first token; medians over the rounds."""

    tokens: int
    """That the image or video takes in the prompt."""
    prompt_tokens: int
    """With the text around and, in a video, between them."""
    prepare_seconds: float
    """Pixels to patches."""
    vision_seconds: float
    """Patches to features."""
    prefill_seconds: float
    """Features and text to the first token."""
    first_token_seconds: float
    """All of that."""
    peak_memory_bytes: int | None
    """Of the process since the model was opened once more for this; weights in the page cache counted."""


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds."""

    tier: str
    threads: int
    weight_bytes: int
    open_seconds: float
    first_token_seconds: float
    """From the path to the first token of a 16-token prompt, the file in the page cache."""
    prefill_tokens_per_second: dict[int, float]
    """By length of the prompt."""
    decode_tokens_per_second: dict[int, float]
    """By tokens already in the context."""
    peak_memory_bytes: int | None
    """Of the process, weights in the page cache counted; `None` where the system does not tell. Images and
    videos have their own."""
    media: Mapping[str, MeasuredMedia] = field(default_factory=dict)
    """By size, such as `640x480` for an image and `448x448x10` for a video."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def shapes(size: str) -> str:
    """Return the `config.json` of a size of the family."""
    return (resources.files("edgewise") / "shapes" / f"{size}.json").read_text()


def write_random(size: str, destination: Path, recipe: str = "int4") -> None:
    """Write a checkpoint of random weights in the true shapes of a size of the family.

    Raises:
        OSError: if the file cannot be written.
    """
    _native.write_random(shapes(size), str(destination), recipe)


def measure(path: str, plan: Plan) -> Measured:
    """Measure a checkpoint; random tokens and noise serve as prompts.

    Raises:
        CheckpointError: if a file of the checkpoint is unusable.
        ContextError: if the context cannot hold the prompt and the new tokens.
        ValueError: if there are images or videos to measure with, and the model does not see.
    """
    measured = _measure_text(path, plan)
    return replace(measured, media={str(shape): _measure_media(path, plan, shape) for shape in plan.media})


def _measure_text(path: str, plan: Plan) -> Measured:
    forget_peak_memory()
    opened, first, engine = [], [], None
    for _ in range(plan.rounds):
        engine = None
        start = time.perf_counter()
        engine = _native.Engine.open(path, plan.dtype, threads=plan.threads)
        opened.append(time.perf_counter() - start)
        _decode(engine, _prefilled(engine, FIRST_PROMPT), 1)
        first.append(time.perf_counter() - start)
    if engine is None:
        raise ValueError("rounds: at least one is needed")
    prefill, decode = {}, {}
    for length in plan.prompt_lengths:
        prefill[length], decode[length] = _speeds(engine, length, plan)
    info = engine.info()
    return Measured(
        tier=info["tier"],
        threads=info["threads"],
        weight_bytes=info["weight_bytes"],
        open_seconds=statistics.median(opened),
        first_token_seconds=statistics.median(first),
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        peak_memory_bytes=peak_memory(),
    )


def forget_peak_memory() -> None:
    """Let the peak begin anew with the memory in use now, where the system allows that."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def peak_memory() -> int | None:
    """Return the most bytes of memory this process held at once, `None` where the system does not tell."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _speeds(engine: _native.Engine, length: int, plan: Plan) -> tuple[float, float]:
    """Return tokens per second of reading a prompt and of writing after it."""
    reading, writing = [], []
    for _ in range(plan.rounds):
        start = time.perf_counter()
        sequence = _prefilled(engine, length)
        reading.append(length / (time.perf_counter() - start))
        _decode(engine, sequence, 1)
        start = time.perf_counter()
        _decode(engine, sequence, plan.new_tokens)
        writing.append(plan.new_tokens / (time.perf_counter() - start))
    return statistics.median(reading), statistics.median(writing)


def _prefilled(engine: _native.Engine, length: int) -> _native.Sequence:
    sequence = engine.sequence()
    sequence.append(_text(engine, length))
    return sequence


def _text(engine: _native.Engine, length: int) -> list[int]:
    return [(7919 * i + 11) % engine.vocab_size for i in range(length)]


def _decode(engine: _native.Engine, sequence: _native.Sequence, tokens: int) -> None:
    sampler = _native.Sampler(engine.vocab_size, temperature=0.0)
    for _ in range(tokens):
        sequence.append([sampler.sample(sequence)[0]])


@dataclass(frozen=True)
class _Round:
    """One reading of an image or video; times in seconds."""

    tokens: int
    prompt_tokens: int
    prepare: float
    vision: float
    prefill: float


def _measure_media(path: str, plan: Plan, shape: MediaShape) -> MeasuredMedia:
    """Measure with one image or video. Nothing of a round is kept for the next."""
    forget_peak_memory()
    engine = _native.Engine.open(path, plan.dtype, threads=plan.threads)
    vision = engine.vision
    if vision is None:
        raise ValueError(f"{shape}: the model has no vision tower, it reads text only")
    picture = _noise(shape)
    rounds = [_see(engine, vision, shape, picture) for _ in range(plan.rounds)]
    return MeasuredMedia(
        tokens=rounds[0].tokens,
        prompt_tokens=rounds[0].prompt_tokens,
        prepare_seconds=statistics.median(one.prepare for one in rounds),
        vision_seconds=statistics.median(one.vision for one in rounds),
        prefill_seconds=statistics.median(one.prefill for one in rounds),
        first_token_seconds=statistics.median(one.prepare + one.vision + one.prefill for one in rounds),
        peak_memory_bytes=peak_memory(),
    )


def _noise(shape: MediaShape) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (shape.height, shape.width, 3), np.uint8)
    return Image.fromarray(pixels)


def _see(
    engine: _native.Engine, vision: Mapping[str, int], shape: MediaShape, picture: Image.Image
) -> _Round:
    """Read an image or video up to the first token."""
    preparing = encoding = 0.0
    features = []
    start = time.perf_counter()
    groups = _prepared(engine, shape, picture).groups()
    while (group := next(groups, None)) is not None:
        pixel_values = group.pixel_values()
        prepared = time.perf_counter()
        features.append(engine.encode(pixel_values, group.grid_hw))
        preparing += prepared - start
        start = time.perf_counter()
        encoding += start - prepared
    ids, media = _prompt(engine, vision, shape, features)
    start = time.perf_counter()
    sequence = engine.sequence()
    sequence.append(ids, media)
    _native.Sampler(engine.vocab_size, temperature=0.0).sample(sequence)
    reading = time.perf_counter() - start
    return _Round(sum(part.tokens for part in features), len(ids), preparing, encoding, reading)


def _prepared(
    engine: _native.Engine, shape: MediaShape, picture: Image.Image
) -> PreparedImage | PreparedVideo:
    if shape.seconds is None:
        return prepare_image(picture, ImageSettings.read(engine.side_file))
    settings = VideoSettings.read(engine.side_file)
    frames = [picture] * max(1, round(shape.seconds * settings.fps))
    return prepare_video(frames, settings, source_fps=settings.fps)


def _prompt(
    engine: _native.Engine,
    vision: Mapping[str, int],
    shape: MediaShape,
    features: Sequence[_native.VisualFeatures],
) -> tuple[list[int], list[tuple[int, _native.VisualFeatures]]]:
    """Return token ids, and the features with where they stand among them."""
    is_image = shape.seconds is None
    placeholder = vision["image_token_id" if is_image else "video_token_id"]
    ids, media = _text(engine, TEXT_BEFORE), []
    for part in features:
        ids += _text(engine, 0 if is_image else TIMESTAMP)
        ids.append(vision["vision_start_token_id"])
        media.append((len(ids), part))
        ids += [placeholder] * part.tokens
        ids.append(vision["vision_end_token_id"])
    return ids + _text(engine, TEXT_AFTER), media
