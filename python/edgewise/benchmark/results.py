"""What was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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
class MachineLimits:
    """What so many threads of this machine can do at most, each the best of many passes."""

    threads: int
    memory_bytes_per_second: float
    """Read from a buffer that no cache holds."""
    mapped_bytes_per_second: float | None
    """The same from the checkpoint's file in the page cache; `None` unless it is one large file."""
    int8_operations_per_second: float
    """Multiplications and additions, counted apart, of INT8 dot products in registers."""
    f32_operations_per_second: float
    """The same of fused multiply-adds."""

    @property
    def read_bytes_per_second(self) -> float:
        """How fast weights can be read: the better of memory and mapping."""
        return max(self.memory_bytes_per_second, self.mapped_bytes_per_second or 0.0)


@dataclass(frozen=True)
class Share:
    """A speed beside what the machine can do."""

    per_token: int
    """Bytes that a token reads, or operations that it takes."""
    limit: float
    """Bytes or operations per second that the machine is capable of."""
    share: float
    """Of the limit that was reached, 1 for all of it."""


@dataclass(frozen=True)
class Spent:
    """What one kind of operation took."""

    calls: int
    seconds: float
    bytes: int
    """Of weights, state and cache that were there to be read."""
    operations: int
    """Of products with weights."""
    share: float
    """Of all the time."""


@dataclass(frozen=True)
class Breakdown:
    """Where the time went."""

    tokens: int
    """That were read or written."""
    seconds: float
    """In all."""
    operations: Mapping[str, Spent]
    """By kind, `other` for what belongs to none."""
    memory_bytes_per_second: float | None = None
    """How fast the weights that every token meets could be read right before and after; `None` if not
    measured, as of prefill, or if they are hardly more than the processor's cache holds."""


@dataclass(frozen=True)
class Estimate:
    """What a model of all layers would do, from one that has fewer."""

    measured_layers: int
    layers: int
    weight_bytes: int
    prefill_seconds_per_layer: Mapping[int, float]
    """Of one layer and one token, by length of the prompt."""
    decode_seconds_per_layer: Mapping[int, float]
    """Of one layer and one token, by tokens already in the context."""
    prefill_tokens_per_second: Mapping[int, float]
    decode_tokens_per_second: Mapping[int, float]


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds."""

    tier: str
    threads: int
    weight_bytes: int
    open_seconds: float
    first_token_seconds: float
    """From the path to the first token of a 16-token prompt, the file in the page cache."""
    prefill_tokens_per_second: Mapping[int, float]
    """By length of the prompt."""
    decode_tokens_per_second: Mapping[int, float]
    """By tokens already in the context."""
    peak_memory_bytes: int | None
    """Of the process, weights in the page cache counted; `None` where the system does not tell. Images and
    videos have their own."""
    media: Mapping[str, MeasuredMedia] = field(default_factory=dict)
    """By size, such as `640x480` for an image and `448x448x10` for a video."""
    limits: MachineLimits | None = None
    """Of the machine with so many threads, measured in the same run."""
    other_limits: tuple[MachineLimits, ...] = ()
    """With fewer threads."""
    prefill_shares: Mapping[int, Share] = field(default_factory=dict)
    """INT8 operations beside their limit; empty if the weights are not quantised or no limit was measured."""
    decode_shares: Mapping[int, Share] = field(default_factory=dict)
    """Bytes read beside what memory can deliver: where the weights are far more than caches hold, as measured
    right before and after each round of writing, medians; else as in `limits`. Empty if none was measured."""
    breakdown: Mapping[str, Breakdown] = field(default_factory=dict)
    """Of `prefill` and `decode`, if asked for."""
    estimate: Estimate | None = None
    """If fewer layers than the model has were measured."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)
