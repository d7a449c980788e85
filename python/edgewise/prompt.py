"""A prompt ready to be read by a model: token ids, and the images and videos among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgewise import _native
from edgewise.media import FrameGroup, PreparedImage, PreparedVideo
from edgewise.media_options import MediaKind
from edgewise.stored import StoredImage


@dataclass(frozen=True, eq=False)
class PlacedMedia:
    """An image or a video in a prompt."""

    kind: MediaKind
    prepared: PreparedImage | PreparedVideo | StoredImage
    starts: tuple[int, ...]
    """For each frame group the index of its first token in the prompt."""
    where: str
    """How errors and progress name it, such as `images[0]`."""

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Frame groups, rows and columns of patches."""
        return self.prepared.grid_thw

    @property
    def merged_hw(self) -> tuple[int, int]:
        """Rows and columns of tokens of each frame group."""
        _, rows, columns = self.grid_thw
        merge = self.prepared.settings.merge_size
        return rows // merge, columns // merge

    def groups(self) -> Iterator[tuple[int, FrameGroup]]:
        """Yield each frame group and the index of its first token; a video is decoded while this runs.

        Of a video that a prompt holds only the beginning of, there are more groups than starts.
        """
        yield from zip(self.starts, islice(self.prepared.groups(), len(self.starts)), strict=True)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """For each frame group the index of its first token, and how many it takes."""
        rows, columns = self.merged_hw
        return [(start, rows * columns) for start in self.starts]


def moved(medium: PlacedMedia, tokens: int) -> PlacedMedia:
    """Return an image or a video so many tokens further behind."""
    return replace(medium, starts=tuple(start + tokens for start in medium.starts))


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """What a model reads: made by `Model.prepare`, taken by `generate`, `stream`, `logits` and `trace`.

    Images are held resized, as bytes; of videos only what is needed to decode them again.

    >>> from PIL import Image
    >>> from edgewise import Model
    >>> model = Model.from_pretrained("demo")
    >>> prompt = model.prepare("Describe the image.", images=Image.new("RGB", (96, 96), "white"))
    >>> prompt
    Prompt(tokens=25, images=1, videos=0)
    >>> prompt.grid_thw.tolist(), prompt.pixel_values.shape
    ([[1, 6, 6]], (36, 1536))
    """

    token_ids: list[int]
    """All tokens; an image or a frame group of a video takes as many as its grid has squares of 2 x 2."""
    media: tuple[PlacedMedia, ...] = ()
    """Images and videos in the order of the prompt."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        images, videos = (len(self._of(kind)) for kind in ("image", "video"))
        return f"Prompt(tokens={len(self)}, images={images}, videos={videos})"

    @cached_property
    def _positions(self) -> tuple[NDArray[np.uint32], int]:
        spans = [(start, *medium.merged_hw) for medium in self.media for start in medium.starts]
        return _native.position_ids(len(self), spans)

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """Rotary positions, int64 [3, tokens]: time, height and width. For text all three are the same."""
        return self._positions[0].astype(np.int64)

    @property
    def rope_delta(self) -> int:
        """Position of the token after the prompt less the number of tokens: 0 without media, else below."""
        return self._positions[1] - len(self)

    @property
    def grid_thw(self) -> NDArray[np.int64]:
        """Grids of all images and videos, int64 [media, 3]: frame groups, rows and columns of patches."""
        return _grids(self.media)

    @property
    def image_grid_thw(self) -> NDArray[np.int64]:
        """Grids of the images alone, int64 [images, 3]."""
        return _grids(self._of("image"))

    @property
    def video_grid_thw(self) -> NDArray[np.int64]:
        """Grids of the videos alone, int64 [videos, 3]."""
        return _grids(self._of("video"))

    @property
    def pixel_values(self) -> NDArray[np.float32]:
        """Patches of all images and videos, float32 [patches, 1536], in the order of the prompt.

        Computed each time, with videos decoded anew: 6 MB a thousand patches, so 96 MB for a video of 4096
        tokens. Generating does not use this; it takes one frame group at a time.
        """
        groups = [group.pixel_values() for medium in self.media for _, group in medium.groups()]
        return np.concatenate(groups) if groups else np.zeros((0, _PATCH_VALUES), np.float32)

    def _of(self, kind: str) -> list[PlacedMedia]:
        return [medium for medium in self.media if medium.kind == kind]


_PATCH_VALUES = 3 * 2 * 16 * 16
"""Numbers of a patch: channels, frames, rows, columns."""


def _grids(media: list[PlacedMedia] | tuple[PlacedMedia, ...]) -> NDArray[np.int64]:
    return np.array([medium.grid_thw for medium in media], np.int64).reshape(len(media), 3)
