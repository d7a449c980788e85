"""Samples as text and patches: what the chat template and the processors make of them, without their cost."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from demo.data import Sample
from demo.pictures import FRAMES_PER_SECOND, Pixels

PATCH = 16
MERGE = 2
FRAMES_PER_PATCH = 2
TOKENS_PER_FRAME = 9
"""96 / 16 = 6 patches a side, 3 after merging 2 x 2."""


def media_text(sample: Sample) -> str:
    """Placeholders for the picture, or for each pair of frames with its time."""
    if sample.medium == "image":
        return f"<|vision_start|>{'<|image_pad|>' * TOKENS_PER_FRAME}<|vision_end|>"
    pairs = range(0, len(sample.frames), FRAMES_PER_PATCH)
    return "".join(
        f"<{(first + 0.5) / FRAMES_PER_SECOND:.1f} seconds>"
        f"<|vision_start|>{'<|video_pad|>' * TOKENS_PER_FRAME}<|vision_end|>"
        for first in pairs
    )


def prompt_text(sample: Sample) -> str:
    """The prompt as the chat template writes it with `enable_thinking=False`, placeholders expanded."""
    system = f"<|im_start|>system\n{sample.system}<|im_end|>\n" if sample.system else ""
    user = f"<|im_start|>user\n{media_text(sample)}{sample.question}<|im_end|>\n"
    return f"{system}{user}<|im_start|>assistant\n<think>\n\n</think>\n\n"


def answer_text(sample: Sample) -> str:
    return f"{sample.answer}<|im_end|>"


def patches(frames: Sequence[Pixels]) -> NDArray[np.float32]:
    """A picture or clip as patches [pairs * 36, 3 * 2 * 16 * 16], in 2 x 2 blocks; one frame counts twice."""
    if len(frames) == 1:
        frames = [frames[0], frames[0]]
    pixels = np.stack(frames).astype(np.float32) / 127.5 - 1.0
    count, height, width, _ = pixels.shape
    block = PATCH * MERGE
    pairs, rows, columns = count // FRAMES_PER_PATCH, height // block, width // block
    split = pixels.reshape(pairs, FRAMES_PER_PATCH, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    # pair, block row, block column, row in block, column in block, channel, frame, y, x
    ordered = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(-1, 3 * FRAMES_PER_PATCH * PATCH * PATCH)
