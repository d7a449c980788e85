"""Animated GIF, WebP and PNG. None of this needs PyAV."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgewise.media import MediaError, open_video
from edgewise.media.video import Video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
FORMATS = ["GIF", "WEBP", "PNG"]


def animation(kind: str, duration: int | list[int] = 100, **options: Any) -> bytes:
    """One picture of a plain colour for each of `COLOURS`, 12 x 8, as a file."""
    pictures = [Image.new("RGB", (12, 8), colour) for colour in COLOURS]
    return saved(
        kind, pictures, duration=duration, **({"lossless": True} if kind == "WEBP" else {}), **options
    )


def saved(kind: str, pictures: list[Image.Image], **options: Any) -> bytes:
    stream = io.BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:], **options)
    return stream.getvalue()


def read(video: Video, indices: list[int]) -> list[NDArray[np.uint8]]:
    return list(video.frames(indices))


def colours(video: Video, indices: list[int]) -> list[tuple[int, ...]]:
    return [tuple(int(level) for level in frame[3, 5]) for frame in video.frames(indices)]


@pytest.mark.parametrize("kind", FORMATS)
class TestEveryFormat:
    def test_frames_in_order(self, kind: str) -> None:
        video = open_video(animation(kind))
        assert (video.total_frames, video.height, video.width) == (5, 8, 12)
        assert colours(video, [0, 1, 2, 3, 4]) == COLOURS
        assert colours(video, [1, 1, 4]) == [COLOURS[1], COLOURS[1], COLOURS[4]]
        assert colours(video, [0]) == COLOURS[:1]

    def test_rate_is_frames_by_duration(self, kind: str) -> None:
        assert open_video(animation(kind, 100)).fps == pytest.approx(10)
        assert open_video(animation(kind, [100, 200, 300, 100, 300])).fps == pytest.approx(5)
        assert open_video(animation(kind, 100), source_fps=3).fps == 3

    def test_file_and_data_uri_hold_the_same(self, kind: str, tmp_path: Path) -> None:
        data = animation(kind)
        path = tmp_path / "a.bin"
        path.write_bytes(data)
        uri = f"data:video/{kind.lower()};base64,{base64.b64encode(data).decode()}"
        for source in (path, str(path), uri, uri.replace("video/", "image/", 1)):
            assert colours(open_video(source), [0, 3]) == [COLOURS[0], COLOURS[3]]

    def test_one_picture_is_a_video_of_one_frame(self, kind: str) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (5, 4), "red").save(stream, kind)
        video = open_video(stream.getvalue())
        assert (video.total_frames, video.fps) == (1, 24.0)

    def test_cut_short(self, kind: str, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
        data = saved(kind, [Image.fromarray(frame) for frame in noise], duration=50)
        for part in (0.02, 0.3, 0.6, 0.9):
            path = tmp_path / "cut.bin"
            path.write_bytes(data[: int(len(data) * part)])
            with pytest.raises(MediaError, match=r"^videos\[3\]: .*cut\.bin'"):
                open_video(path, where="videos[3]")

    def test_the_file_may_change_after_opening(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(animation(kind))
        video = open_video(path)
        path.write_bytes(animation(kind)[:60])
        with pytest.raises(MediaError, match=r"^video: .*a\.bin'"):
            read(video, [0, 4])
        path.unlink()
        with pytest.raises(MediaError, match=r"^video: .*a\.bin' cannot be read"):
            read(video, [0])

    def test_too_large(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edgewise.media.video_pillow.MAX_SOURCE_PIXELS", 95)
        with pytest.raises(MediaError, match=r"has frames of 12 x 8 pixels, the limit is 95"):
            open_video(animation(kind))

    def test_too_many_frames_and_too_long(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edgewise.media.video_pillow.MAX_DURATION", 100)
        with pytest.raises(MediaError, match=r"lasts 150 seconds, the limit is 100"):
            open_video(animation(kind, 30_000))
        monkeypatch.setattr("edgewise.media.video_pillow.MAX_ANIMATION_PIXELS", 5 * 12 * 8 - 1)
        with pytest.raises(MediaError, match=r"has 5 frames of 12 x 8 pixels, the limit is 479 together"):
            open_video(animation(kind))
        monkeypatch.setattr("edgewise.media.video_pillow.MAX_SOURCE_FRAMES", 4)
        with pytest.raises(MediaError, match=r"has 5 frames, there must be from 1 to 4"):
            open_video(animation(kind))


def test_transparent_pixels_are_white_and_disposal_is_heeded() -> None:
    pictures = []
    for left in (0, 4, 8):
        picture = Image.new("RGBA", (12, 8), (0, 0, 0, 0))
        picture.paste((255, 0, 0, 255), (left, 0, left + 4, 8))
        picture.paste((255, 0, 0, 255), (0, 0, 12, 1))
        pictures.append(picture)
    for kind, options in (("GIF", {"disposal": 2}), ("PNG", {"disposal": 1}), ("WEBP", {"lossless": True})):
        video = open_video(saved(kind, pictures, duration=40, **options))
        for index, frame in enumerate(video.frames([0, 1, 2])):
            want = np.full((8, 12, 3), 255, np.uint8)
            want[:, index * 4 : index * 4 + 4] = (255, 0, 0)
            want[0] = (255, 0, 0)
            np.testing.assert_array_equal(frame, want, err_msg=f"{kind} {index}")


def test_a_gif_without_durations_has_the_default_rate() -> None:
    assert open_video(animation("GIF", 0)).fps == 24.0


def test_the_still_picture_before_a_png_animation_is_no_frame() -> None:
    pictures = [Image.new("RGB", (12, 8), colour) for colour in COLOURS]
    video = open_video(saved("PNG", pictures, duration=100, default_image=True))
    assert video.total_frames == 4
    assert video.fps == pytest.approx(10)
    assert colours(video, [0, 3]) == [COLOURS[1], COLOURS[4]]


def test_a_huge_png_header_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(MediaError, match="has frames of 60000 x 60000 pixels"):
        open_video(data)
