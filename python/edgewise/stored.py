"""Images and frames of a sequence read from a file: what the model sees of them, without their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from edgewise.media import FrameGroup

if TYPE_CHECKING:
    from edgewise._native import VisualFeatures


@dataclass(frozen=True)
class StoredSettings:
    """What remains of the settings of pixels."""

    merge_size: int
    """Patches a side of a token."""


@dataclass(frozen=True, eq=False)
class StoredGroup:
    """A frame group that is encoded already."""

    features: VisualFeatures
    key: bytes
    """As `FrameGroup.key`."""

    @property
    def tokens(self) -> int:
        """Tokens it takes in a prompt."""
        return self.features.tokens


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image, or one frame group of a video, in place of what `prepare_image` returns."""

    group: StoredGroup
    settings: StoredSettings

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Frame groups (always 1), rows and columns of patches."""
        return 1, *self.group.features.grid_hw

    @property
    def tokens(self) -> int:
        """Tokens it takes in a prompt."""
        return self.group.tokens

    def groups(self) -> Iterator[FrameGroup]:
        """Return an iterator over its only frame group, which `Encoder` takes as one of the other kind."""
        yield cast("FrameGroup", self.group)
