"""Places of images and videos in a prompt: one special token from the template, as many as needed after.

The text is expanded to one pad token for each frame group (an image, or two frames of a video) before it is
encoded, since the timestamps between the groups of a video are ordinary text. Each pad token is then repeated
once for every token of its group, which is faster on ids than on text and gives the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgewise._native import CheckpointError
from edgewise.media_options import MediaKind
from edgewise.messages import MediaPart
from edgewise.tokenizer import FILE, Tokenizer

VideoPrompt = Literal["flat", "nested"]
"""How a video stands in a prompt: `flat`, each pair of frames after its time; `nested`, all of that once more
between the tokens that begin and end something seen."""


@dataclass(frozen=True)
class MediaTokens:
    """The special tokens of a checkpoint that stand for images and videos, as text."""

    vision_start: str
    vision_end: str
    pads: Mapping[MediaKind, str]
    ids: Mapping[int, MediaKind]
    """What a pad token's id stands for."""

    @classmethod
    def read(cls, vision: Mapping[str, int], tokenizer: Tokenizer) -> MediaTokens:
        """Look up the tokens that a vision tower names.

        Raises:
            CheckpointError: if the tokenizer has no such token.
        """
        image, video = vision["image_token_id"], vision["video_token_id"]
        return cls(
            vision_start=_spelling(tokenizer, vision["vision_start_token_id"]),
            vision_end=_spelling(tokenizer, vision["vision_end_token_id"]),
            pads={"image": _spelling(tokenizer, image), "video": _spelling(tokenizer, video)},
            ids={image: "image", video: "video"},
        )

    def place(self, kind: MediaKind) -> str:
        """Return what a template writes for an image or a video."""
        return f"{self.vision_start}{self.pads[kind]}{self.vision_end}"

    @property
    def pattern(self) -> re.Pattern[str]:
        """What finds any pad token in a text."""
        return re.compile("|".join(map(re.escape, self.pads.values())))

    def kind(self, pad: str) -> MediaKind:
        """Return what a pad token stands for."""
        return "image" if pad == self.pads["image"] else "video"


@dataclass(frozen=True)
class Shape:
    """What has to be known of an image or a video to make room for it in a prompt."""

    kind: MediaKind
    group_tokens: int
    """Tokens of each frame group."""
    times: Sequence[str] = ()
    """A video's timestamps, one for each group; an image has one group and none."""

    @property
    def groups(self) -> int:
        """How many frame groups there are."""
        return len(self.times) if self.kind == "video" else 1


def check_counts(text: str, kinds: Sequence[MediaKind], tokens: MediaTokens) -> None:
    """Raise ValueError if a text has not one place for each image and video, no more and no fewer."""
    for kind, pad in tokens.pads.items():
        places, given = text.count(pad), kinds.count(kind)
        if places != given:
            raise ValueError(
                f"prompt: '{pad}' occurs {places} times for {given} {kind}s; there must be one for each, and "
                "none in other text"
            )


def in_order(text: str, parts: Sequence[MediaPart], tokens: MediaTokens) -> list[MediaPart]:
    """Return images and videos in the order of their places in a text that `check_counts` accepts."""
    following = {kind: iter([part for part in parts if part.kind == kind]) for kind in tokens.pads}
    return [next(following[tokens.kind(match[0])]) for match in tokens.pattern.finditer(text)]


def expand_text(text: str, shapes: Sequence[Shape], tokens: MediaTokens, video_prompt: VideoPrompt) -> str:
    """Write a group for each pair of frames in place of a video; an image's place is left as it is.

    Args:
        text: as the template writes it, with one place for each of `shapes`.
        shapes: of all images and videos, in the order of the text.
        tokens: of the checkpoint.
        video_prompt: `nested` replaces the pad token only, `flat` also the two around it where they are
            there.
    """
    videos = iter([shape for shape in shapes if shape.kind == "video"])
    place, pad = tokens.place("video"), tokens.pads["video"]
    pattern = re.escape(pad) if video_prompt == "nested" else f"{re.escape(place)}|{re.escape(pad)}"
    return re.sub(pattern, lambda _: "".join(time + place for time in next(videos).times), text)


def expand_ids(
    ids: Sequence[int], shapes: Sequence[Shape], tokens: MediaTokens
) -> tuple[list[int], list[list[int]]]:
    """Repeat each pad token as often as its frame group has tokens.

    Args:
        ids: of the text that `expand_text` returned.
        shapes: of all images and videos, in the order of the prompt.
        tokens: of the checkpoint.

    Returns:
        The expanded ids; and for each image or video, where in them each of its groups begins.

    Raises:
        ValueError: if the pad tokens are not those of the shapes.
    """
    expanded: list[int] = []
    starts: list[list[int]] = [[] for _ in shapes]
    groups = _groups(shapes)
    for token_id in ids:
        kind = tokens.ids.get(token_id)
        if kind is None:
            expanded.append(token_id)
            continue
        index = next(groups, None)
        if index is None or shapes[index].kind != kind:
            raise ValueError(f"prompt: there is a '{tokens.pads[kind]}' too many for the {kind}s given")
        starts[index].append(len(expanded))
        expanded += [token_id] * shapes[index].group_tokens
    if (index := next(groups, None)) is not None:
        kind = shapes[index].kind
        raise ValueError(f"prompt: there is a '{tokens.pads[kind]}' too few for the {kind}s given")
    return expanded, starts


def _groups(shapes: Sequence[Shape]) -> Iterator[int]:
    """Yield for each frame group the number of the image or video that it belongs to."""
    for index, shape in enumerate(shapes):
        yield from [index] * shape.groups


def _spelling(tokenizer: Tokenizer, token_id: int) -> str:
    token = tokenizer.token(token_id)
    if token is None:
        raise CheckpointError(
            f"{FILE}: there is no token {token_id}, which config.json names for images or video"
        )
    return token
