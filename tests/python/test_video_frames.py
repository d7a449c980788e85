"""Videos given as pictures, and what is no video at all. None of this needs PyAV."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgewise.media import MediaError, open_video
from edgewise.media.video import Video

Frames = NDArray[np.uint8]


def frames(count: int = 5, height: int = 6, width: int = 8) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def read(video: Video, indices: list[int] | None = None) -> list[Frames]:
    return list(video.frames(list(range(video.total_frames)) if indices is None else indices))


class TestPictures:
    def test_an_array(self) -> None:
        array = frames()
        video = open_video(array)
        assert (video.total_frames, video.height, video.width, video.fps) == (5, 6, 8, 24.0)
        np.testing.assert_array_equal(read(video), array)

    def test_a_queue_that_goes_on_changing(self) -> None:
        array = frames(3)
        queue = deque(array, maxlen=3)
        video = open_video(queue)
        queue.clear()
        np.testing.assert_array_equal(read(video), array)

    def test_a_list_of_anything_that_is_an_image(self, tmp_path: Path) -> None:
        array = frames(4)
        paths = [tmp_path / f"{index}.png" for index in range(4)]
        for path, frame in zip(paths, array, strict=True):
            Image.fromarray(frame).save(path)
        pictures = (paths[0], str(paths[1]), paths[2].read_bytes(), Image.fromarray(array[3]))
        np.testing.assert_array_equal(read(open_video(pictures)), array)

    def test_frames_may_come_twice_and_be_read_again(self) -> None:
        array = frames()
        video = open_video(list(array), source_fps=2)
        assert video.fps == 2.0
        for _ in range(2):
            np.testing.assert_array_equal(read(video, [0, 0, 4, 4]), array[[0, 0, 4, 4]])

    def test_pictures_are_loaded_only_when_they_are_needed(self, tmp_path: Path) -> None:
        path = tmp_path / "first.png"
        Image.fromarray(frames()[0]).save(path)
        video = open_video([path, tmp_path / "missing.png"])
        assert len(read(video, [0])) == 1
        with pytest.raises(MediaError, match=r"^video\[1\]: .*missing\.png"):
            read(video, [1])

    def test_another_size_is_refused(self) -> None:
        video = open_video([frames(1)[0], frames(1, height=7)[0]], where="videos[2]")
        with pytest.raises(MediaError, match=r"^videos\[2\]\[1\]: .*8 x 7 pixels, the first 8 x 6"):
            read(video)

    @pytest.mark.parametrize("empty", [[], (), frames(0)])
    def test_no_frames(self, empty: Any) -> None:
        with pytest.raises(MediaError, match=r"^video: there are no frames"):
            open_video(empty)

    @pytest.mark.parametrize(
        "array",
        [
            frames()[0],
            frames().transpose(0, 3, 1, 2),
            frames().astype(np.float32),
            frames()[..., :1],
            np.array(3, np.uint8),
        ],
        ids=["one picture", "channels first", "floats", "gray", "no axes"],
    )
    def test_other_arrays_are_refused(self, array: Any) -> None:
        with pytest.raises(MediaError, match=r"^video: expected an array uint8 \[frames, height, width, 3\]"):
            open_video(array)

    def test_frames_without_pixels(self) -> None:
        with pytest.raises(MediaError, match=r"^video\[0\]: "):
            open_video(frames(2, height=0))


class TestSources:
    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match=r"^videos\[1\]: .*no\.mp4' cannot be read: No such file"):
            open_video(tmp_path / "no.mp4", where="videos[1]")
        with pytest.raises(MediaError, match=r"^video: .* is not a file"):
            open_video(str(tmp_path))

    def test_nothing_is_downloaded(self) -> None:
        for url in ("https://example.org/a.mp4", "RTSP://camera/1", "file:///a.mp4"):
            with pytest.raises(MediaError, match="is a URL, and nothing is downloaded"):
                open_video(url)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (b"", "is empty"),
            ("a\0b", "cannot be read"),
            ("data:video/mp4,abc", "not of the form data:video"),
            ("data:text/plain;base64,YWJj", "not of the form data:video"),
            ("data:video/mp4;base64,a?b", "not valid base64"),
            ("data:video/mp4;base64,", "is empty"),
        ],
    )
    def test_what_holds_no_bytes(self, source: Any, message: str) -> None:
        with pytest.raises(MediaError, match=rf"^video: .*{message}"):
            open_video(source)

    @pytest.mark.parametrize("source", [None, 3, {"a": 1}, Image.new("RGB", (4, 4)), bytearray(b"abc")])
    def test_other_types(self, source: Any) -> None:
        with pytest.raises(TypeError, match=r"^video: expected a path, bytes, a list of frames"):
            open_video(source)

    @pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan")])
    def test_a_rate_that_is_none(self, fps: float) -> None:
        with pytest.raises(ValueError, match=r"^video: source_fps: "):
            open_video(frames(), source_fps=fps)
        with pytest.raises(TypeError, match=r"^video: source_fps: "):
            open_video(frames(), source_fps="30")  # type: ignore[arg-type]


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with pytest.raises(MediaError, match=r"^video: .*clip\.mp4' .*PyAV: pip install edgewise\[video\]$"):
        open_video(path)
