"""Places of images and videos: expanded for any mixture of text, images and videos."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from edgewise.messages import MediaPart
from edgewise.placeholders import MediaTokens, Shape, check_counts, expand_ids, expand_text, in_order
from edgewise.tokenizer import Tokenizer

TOKENIZER = Tokenizer(fakes.byte_tokenizer())
TOKENS = MediaTokens.read(fakes.VISION, TOKENIZER)

plain_texts = st.text(st.characters(codec="ascii", exclude_characters="<|>"), max_size=5)
images = st.builds(Shape, st.just("image"), st.integers(1, 6))
videos = st.builds(
    Shape,
    st.just("video"),
    st.integers(1, 6),
    st.lists(st.sampled_from(["<0.2 seconds>", "<1.2 seconds>"]), min_size=1, max_size=3),
)


def expected(pieces: list[str | Shape], style: str) -> str:
    """The expanded text, written out."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        pad = f"<|{piece.kind}_pad|>" * piece.group_tokens
        groups = "".join(f"{time}<|vision_start|>{pad}<|vision_end|>" for time in piece.times or [""])
        nested = style == "nested" and piece.kind == "video"
        text += f"<|vision_start|>{groups}<|vision_end|>" if nested else groups
    return text


@given(st.lists(plain_texts | images | videos), st.sampled_from(["flat", "nested"]))
def test_any_mixture(pieces: list[str | Shape], style: Any) -> None:
    shapes = [piece for piece in pieces if isinstance(piece, Shape)]
    template = "".join(piece if isinstance(piece, str) else TOKENS.place(piece.kind) for piece in pieces)
    check_counts(template, [shape.kind for shape in shapes], TOKENS)
    text = expand_text(template, shapes, TOKENS, style)
    ids, starts = expand_ids(TOKENIZER.encode(text), shapes, TOKENS)
    assert ids == TOKENIZER.encode(expected(pieces, style))
    flat = [start for of_shape in starts for start in of_shape]
    assert flat == sorted(flat)
    for shape, of_shape in zip(shapes, starts, strict=True):
        assert len(of_shape) == shape.groups
        pad = fakes.IMAGE_PAD if shape.kind == "image" else fakes.VIDEO_PAD
        for start in of_shape:
            end = start + shape.group_tokens
            assert ids[start - 1 : end + 1] == [
                fakes.VISION_START,
                *[pad] * shape.group_tokens,
                fakes.VISION_END,
            ]


@given(st.lists(st.sampled_from(["image", "video"])))
def test_media_are_put_in_the_order_of_their_places(kinds: list[Any]) -> None:
    text = "".join(TOKENS.place(kind) for kind in kinds)
    parts = [MediaPart(kind, number, "") for number, kind in enumerate(kinds)]
    apart = sorted(parts, key=lambda part: part.kind)
    assert in_order(text, apart, TOKENS) == parts


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([fakes.IMAGE_PAD, fakes.IMAGE_PAD], "'<|image_pad|>' too many for the images"),
        ([fakes.VIDEO_PAD], "'<|video_pad|>' too many for the videos"),
        ([1, 2], "'<|image_pad|>' too few for the images"),
    ],
)
def test_a_tokenizer_that_makes_other_pads_than_the_text_has(ids: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt: there is a") as caught:
        expand_ids(ids, [Shape("image", 4)], TOKENS)
    assert reason in str(caught.value)
