"""Images and videos in messages and arguments: where they may stand, and what is refused."""

from __future__ import annotations

import base64
import io
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise import inputs, messages
from edgewise.media_options import MediaOptions
from edgewise.messages import MediaPart

PICTURE = Image.new("RGB", (64, 64), "red")
TEXT = {"type": "text", "text": "What?"}


def png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


PNG_BASE64 = base64.b64encode(png()).decode()
PNG_URI = f"data:image/png;base64,{PNG_BASE64}"


def separate(*content: Any) -> tuple[list[Any], list[MediaPart]]:
    plain, parts = messages.separate([{"role": "user", "content": list(content)}])
    return plain[0]["content"], parts


def part(entry: Any) -> MediaPart:
    return separate(entry)[1][0]


class TestSeparate:
    def test_the_template_sees_the_kind_alone(self) -> None:
        content, parts = separate(
            {"type": "image", "image": PICTURE},
            TEXT,
            {"type": "image_url", "image_url": {"url": PNG_URI}},
            {"video": "a.mp4"},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        )
        assert content == [{"type": "image"}, TEXT, {"type": "image"}, {"type": "video"}, {"type": "video"}]
        assert [found.where for found in parts] == [f"messages[0].content[{i}]" for i in (0, 2, 3, 4)]
        assert [found.source for found in parts] == [PICTURE, png(), "a.mp4", b"\0\0\0"]

    @pytest.mark.parametrize(
        ("entry", "source"),
        [
            ({"type": "image", "image": "a.png"}, "a.png"),
            ({"type": "image", "path": "data:a.png"}, Path("data:a.png")),
            ({"type": "image", "url": PNG_URI}, png()),
            ({"type": "image", "url": PNG_URI.replace("data", "DATA").replace("base64", "BASE64")}, png()),
            ({"type": "image", "base64": PNG_BASE64}, png()),
            ({"type": "image", "base64": PNG_BASE64.encode()}, png()),
            ({"type": "image", "base64": base64.encodebytes(png())}, png()),
            ({"type": "image", "base64": base64.encodebytes(png()).decode()}, png()),
            ({"type": "image_url", "image_url": PNG_URI}, png()),
            ({"type": "image_url", "image_url": {"url": PNG_URI, "detail": "low"}}, png()),
            ({"image_url": {"url": PNG_URI}}, png()),
            ({"type": "image"}, None),
            ({"type": "video", "video": ["a.png", "b.png"]}, ["a.png", "b.png"]),
            ({"type": "video", "path": "a.mp4"}, Path("a.mp4")),
        ],
    )
    def test_sources(self, entry: dict[str, Any], source: Any) -> None:
        assert part(entry).source == source

    def test_a_text_part_may_have_empty_entries_for_media(self) -> None:
        content, parts = separate({**TEXT, "image": None}, {"type": "image", "image": PICTURE, "video": None})
        assert (content, len(parts)) == ([TEXT, {"type": "image"}], 1)

    def test_the_callers_messages_stay_as_they_are(self) -> None:
        message = {"role": "user", "content": [{"type": "image", "image": PICTURE}]}
        messages.separate([message])
        assert message["content"] == [{"type": "image", "image": PICTURE}]

    def test_content_that_can_be_read_once_only(self) -> None:
        plain, parts = messages.separate(
            [{"role": "user", "content": (p for p in [{"type": "image", "image": PICTURE}, TEXT])}]
        )
        assert plain[0]["content"] == [{"type": "image"}, TEXT]
        assert parts[0].source is PICTURE

    def test_options_of_a_part(self) -> None:
        options = {"min_pixels": 1024, "max_pixels": 4096}
        assert part({"type": "image", "image": PICTURE, **options}).options == options
        video = {"fps": 1, "num_frames": 4, "max_frames": 8, "source_fps": 10}
        assert part({"type": "video", "video": "a.mp4", **options, **video}).options == options | video

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ({"type": "image", "video": "a.mp4"}, r": its type is 'image', but it has 'video'"),
            ({"type": "text", "text": "", "image": PICTURE}, r": its type is 'text', but it has 'image'"),
            ({"type": ["image"], "image": PICTURE}, r": its type is \['image'\], but it has 'image'"),
            ({"image": PICTURE, "video": "a.mp4"}, ": its type is None, but it has 'video'"),
            ({"type": "image", "path": "a", "url": "b"}, ": both 'path' and 'url' are given"),
            ({"type": "image", "path": 5}, r"\.path: expected a path, got int"),
            ({"type": "image", "url": "https://x.org/a.png"}, r"\.url: nothing is downloaded"),
            ({"type": "image", "url": "/etc/passwd"}, r"\.url: expected a data URI .*, got '/etc/passwd'"),
            ({"type": "image_url", "image_url": "HTTP://x"}, r"\.image_url: nothing is downloaded"),
            (
                {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                r"\.image_url: expected a data",
            ),
            ({"type": "video_url", "video_url": {"url": "clip.mp4"}}, r"\.video_url: expected a data URI"),
            ({"type": "image_url", "image_url": {}}, r"\.image_url: expected a data URI, or a dictionary"),
            ({"type": "image_url", "image_url": 5}, r"\.image_url: expected a data URI, or a dictionary"),
            (
                {"type": "image_url", "image_url": {"url": PNG_URI, "max_pixels": 5}},
                r"\.image_url: unexpected key",
            ),
            ({"type": "image", "url": "data:"}, r"\.url: expected a data URI"),
            ({"type": "image", "url": "data:image/png,abc"}, r"\.url: only data URIs in base64"),
            ({"type": "image", "url": "data:image/png;base64,?"}, r"\.url: not valid base64"),
            ({"type": "image", "base64": "ä"}, r"\.base64: not valid base64"),
            ({"type": "image", "base64": 5}, r"\.base64: expected a string in base64, got int"),
            ({"type": "image", "image": PICTURE, "fps": 2}, ": unexpected key 'fps'"),
            ({"type": "video", "video": "a", "nframes": 2}, ": unexpected key 'nframes'; .* 'num_frames'"),
            ({"type": "video", "video": "a", "fps": 0}, r"\.fps: expected a number above 0, got 0"),
            (
                {"type": "video", "video": "a", "num_frames": "4"},
                r"\.num_frames: expected an integer, got '4'",
            ),
            ({"type": "image", 5: 5}, ": unexpected key 5"),
        ],
    )
    def test_malformed_parts(self, entry: dict[Any, Any], reason: str) -> None:
        with pytest.raises((ValueError, TypeError), match=r"^messages\[0\]\.content\[1\]" + reason) as caught:
            separate(TEXT, entry)
        assert len(str(caught.value)) < 200

    def test_a_long_wrong_address_is_not_repeated_in_full(self) -> None:
        with pytest.raises(ValueError, match="expected a data URI") as caught:
            separate({"type": "image_url", "image_url": "x" * 10**6})
        assert len(str(caught.value)) < 200

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        st.sampled_from(["type", "image", "image_url", "video_url", "video", "path", "url", "base64", "fps"]),
    )
    def test_whatever_stands_in_a_part(self, value: Any, key: str) -> None:
        try:
            separate({"type": "image" if key in ("path", "url", "base64") else "text", key: value})
        except (ValueError, TypeError) as error:
            assert str(error).startswith("messages[0].content[0]")  # noqa: PT017


class TestFill:
    @staticmethod
    def fill(content: list[Any], images: list[Any], videos: list[Any]) -> list[tuple[Any, str]]:
        parts = messages.fill(separate(*content)[1], images, videos)
        return [(found.source, found.where) for found in parts]

    def test_in_order_and_only_empty_places(self) -> None:
        content = [{"type": "video"}, {"type": "image"}, {"type": "image", "image": "own"}, {"type": "image"}]
        assert self.fill(content, ["a", "b"], ["v"]) == [
            ("v", "videos[0]"),
            ("a", "images[0]"),
            ("own", "messages[0].content[2]"),
            ("b", "images[1]"),
        ]

    def test_options_of_the_place_stay(self) -> None:
        parts = messages.fill(separate({"type": "image", "max_pixels": 4096})[1], ["a"], [])
        assert parts[0].options == {"max_pixels": 4096}

    def test_missing_and_left_over_ones(self) -> None:
        with pytest.raises(ValueError, match=r"^messages\[0\]\.content\[1\]: this image has no source"):
            self.fill([TEXT, {"type": "image"}], [], [])
        with pytest.raises(ValueError, match=r"^images: 1 given, but the messages have 2 places for them"):
            self.fill([{"type": "image"}, {"type": "image"}], ["a"], [])
        with pytest.raises(ValueError, match=r"^videos: 2 given, but the messages have 0 places"):
            self.fill([{"type": "image", "image": "a"}], [], ["a", "b"])


FRAME = np.zeros((32, 32, 3), np.uint8)
CLIP = np.zeros((4, 32, 32, 3), np.uint8)
JPEG = b"\xff\xd8\xff\xe0"


class TestArguments:
    @pytest.mark.parametrize("path", ["a.png", Path("a.PNG")])
    def test_a_single_png_file_may_be_an_animation(self, path: Any) -> None:
        assert inputs.video_list([path]) == [path]
        assert inputs.video_list([path, "b.png"]) == [[path, "b.png"]]

    @pytest.mark.parametrize("images", ["a.png", Path("a.png"), b"..", PICTURE, FRAME])
    def test_one_image_or_a_list(self, images: Any) -> None:
        assert inputs.image_list(images)[0] is images
        assert inputs.image_list([images, images])[1] is images

    @pytest.mark.parametrize("images", [5, {"image": "a"}, {"a.png"}])
    def test_what_is_no_image(self, images: Any) -> None:
        with pytest.raises(TypeError, match=r"^images: expected"):
            inputs.image_list(images)

    @pytest.mark.parametrize(
        ("videos", "count"),
        [
            ("a.mp4", 1),
            ("a.png", 1),
            (Path("folder"), 1),
            (b"..", 1),
            (CLIP, 1),
            ([PICTURE, PICTURE], 1),
            ([FRAME, FRAME, FRAME], 1),
            (["f0.png", Path("f1.JPG")], 1),
            (["data:image/png;base64,", "f1.png"], 1),
            ([PICTURE, FRAME, "f.png"], 1),
            (["a.mp4", "b.gif"], 2),
            (["data:video/mp4;base64,", "b.gif"], 2),
            (["a.mp4"], 1),
            ([b"..", b"..", b".."], 3),
            ([JPEG, JPEG, PICTURE], 1),
            (deque([FRAME, FRAME, FRAME], maxlen=3), 1),
            ([deque([FRAME]), (FRAME, FRAME)], 2),
            ([[PICTURE, PICTURE], [PICTURE]], 2),
            ([["f0.png", "f1.png"]], 1),
            ([CLIP, CLIP], 2),
            ([CLIP, "a.mp4", [PICTURE, PICTURE]], 3),
            ([], 0),
        ],
    )
    def test_one_video_or_a_list(self, videos: Any, count: int) -> None:
        assert len(inputs.video_list(videos)) == count

    @pytest.mark.parametrize(
        "videos", [5, {"video": "a"}, PICTURE, [PICTURE, "a.mp4"], [CLIP, FRAME], bytearray(3)]
    )
    def test_what_is_no_video(self, videos: Any) -> None:
        with pytest.raises(TypeError, match=r"^videos(\[1\])?: "):
            inputs.video_list(videos)


def test_options_of_a_part_come_before_those_of_the_call() -> None:
    call = MediaOptions(max_pixels=9, num_frames=4)
    assert call.updated({"max_pixels": 5}) == MediaOptions(max_pixels=5, num_frames=4)
    assert call.updated({"fps": 1.0}) == MediaOptions(max_pixels=9, fps=1.0), "one of the two counts"
    assert MediaOptions(fps=3).of("image") == {"min_pixels": None, "max_pixels": None}


def test_texts_are_found_wherever_they_stand() -> None:
    deep: Any = "bottom"
    for _ in range(5000):
        deep = [deep]
    found = dict(messages.texts([{"role": "user", "content": [TEXT], "tool_calls": {"a": deep}}]))
    assert found["What?"] == "messages[0].content[0].text"
    assert "bottom" in found
