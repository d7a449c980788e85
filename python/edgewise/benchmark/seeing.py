"""Images and videos, from pixels in memory to the first token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgewise import _native
from edgewise.benchmark import memory
from edgewise.benchmark.plan import MediaShape, Plan
from edgewise.benchmark.results import MeasuredMedia
from edgewise.benchmark.text import random_text
from edgewise.media import (
    ImageSettings,
    PreparedImage,
    PreparedVideo,
    VideoSettings,
    prepare_image,
    prepare_video,
)

TEXT_BEFORE, TEXT_AFTER = 4, 16
"""Tokens of text around an image or video."""
TIMESTAMP = 6
"""Tokens of text before each pair of video frames: when they are shown."""


@dataclass(frozen=True)
class _Round:
    """One reading of an image or video; times in seconds."""

    tokens: int
    prompt_tokens: int
    prepare: float
    vision: float
    prefill: float


def measure(path: str, plan: Plan, shape: MediaShape) -> MeasuredMedia:
    """Measure with one image or video. Nothing of a round is kept for the next."""
    memory.forget_peak()
    engine = _native.Engine.open(path, plan.dtype, plan.kv_dtype, threads=plan.threads)
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
        peak_memory_bytes=memory.peak(),
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
        del pixel_values  # As a model does: nobody needs them while the text is read.
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
    ids, media = random_text(engine, TEXT_BEFORE), []
    for part in features:
        ids += random_text(engine, 0 if is_image else TIMESTAMP)
        ids.append(vision["vision_start_token_id"])
        media.append((len(ids), part))
        ids += [placeholder] * part.tokens
        ids.append(vision["vision_end_token_id"])
    return ids + random_text(engine, TEXT_AFTER), media
