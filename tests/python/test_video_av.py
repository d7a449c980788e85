"""Video files through PyAV, which makes them too. Left out where it is not installed."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgewise.media import MediaError, VideoSettings, open_video, prepare_video, video_av
from edgewise.media.video import Video

av = pytest.importorskip("av")

Frames = NDArray[np.uint8]

FRAMES, HEIGHT, WIDTH = 40, 48, 64
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4": ("mp4", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
    "mp4 open groups": ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "mp4 hevc": ("mp4", "libx265", {"g": "12", "preset": "ultrafast", "x265-params": "log-level=none"}),
    "mp4 av1": ("mp4", "libsvtav1", {"preset": "12", "g": "12"}),
    "mov mjpeg": ("mov", "mjpeg", {}),
    "mkv": ("matroska", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
    "mkv ffv1": ("matroska", "ffv1", {}),
    "webm vp8": ("webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "webm vp9": ("webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "avi mpeg4": ("avi", "mpeg4", {"g": "12"}),
    "avi h264": ("avi", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
    "ts": ("mpegts", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
    "mpg": ("mpeg", "mpeg2video", {"bf": "2", "g": "12"}),
    "flv": ("flv", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
    "raw h264": ("h264", "libx264", {"bf": "3", "g": "12", "preset": "veryfast"}),
}
"""What it is -> container, encoder, options."""


def pictures(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    """A bright bar that walks over a ground that gets lighter: no two frames are alike."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[...] = (index * 200 // count, 60, 120)
        left = index * 3 % (width - 8)
        frame[:, left : left + 8] = (250, 250, 20)
    return frames


def encoded(
    frames: Frames,
    container: str,
    encoder: str,
    options: dict[str, str],
    *,
    rate: int | Fraction = 10,
    times: list[int] | None = None,
    rotation: int = 0,
    path: Path | None = None,
) -> bytes:
    """A video file, in memory or at `path`. `times` are in milliseconds; without, frames come evenly."""
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV cannot make {encoder}")
    stream_bytes = io.BytesIO()
    with av.open(path or stream_bytes, "w", format=container, options=container_options(path)) as output:
        stream = output.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path.read_bytes() if path else stream_bytes.getvalue()


def container_options(path: Path | None) -> dict[str, str]:
    """The table of contents goes to the front, which only works in a file."""
    return {"movflags": "faststart"} if path else {}


@cache
def clip(kind: str) -> bytes:
    return encoded(pictures(), *KINDS[kind])


def all_frames(data: bytes) -> list[Frames]:
    """All frames, decoded from the beginning to the end."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read(video: Video, indices: list[int] | None = None) -> list[Frames]:
    return list(video.frames(list(range(video.total_frames)) if indices is None else indices))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_size_and_number(self, kind: str) -> None:
        video = open_video(clip(kind))
        assert (video.total_frames, video.height, video.width) == (FRAMES, HEIGHT, WIDTH)
        if not kind.startswith("raw"):
            assert video.fps == pytest.approx(10)
        assert open_video(clip(kind), source_fps=7).fps == 7

    def test_any_frames_are_as_if_all_were_decoded(self, kind: str) -> None:
        video, whole = open_video(clip(kind)), all_frames(clip(kind))
        assert len(whole) == FRAMES
        for indices in (
            [0],
            [39],
            [11, 12, 13],
            [5, 30],
            [0, 0, 7, 7, 25],
            list(range(0, 40, 9)),
            list(range(40)),
        ):
            np.testing.assert_array_equal(read(video, indices), [whole[index] for index in indices])

    def test_cut_short_at_its_end(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "cut.bin"
        data = clip(kind)
        for part in (0.02, 0.3, 0.6):
            path.write_bytes(data[: int(len(data) * part)])
            if KINDS[kind][0] in ("mpegts", "mpeg", "h264") and part > 0.02:
                # Any piece of such a stream is a video.
                assert 0 < open_video(path).total_frames < FRAMES
            else:
                with pytest.raises(MediaError, match=r"^videos\[1\]: .*cut\.bin' .*(cut short|damaged)"):
                    open_video(path, where="videos[1]")


class TestReading:
    @settings(max_examples=40)
    @given(indices=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8).map(sorted))
    @pytest.mark.parametrize("kind", ["mp4", "mp4 open groups", "avi h264"])
    def test_any_ascending_indices(self, kind: str, indices: list[int]) -> None:
        whole = known_frames(kind)
        np.testing.assert_array_equal(
            read(open_video(clip(kind)), indices), [whole[index] for index in indices]
        )

    def test_packets_between_are_not_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded = 0
        decode = video_av._Decoder._decode

        def counting(self: Any, packet: Any) -> None:
            nonlocal decoded
            decoded += 1
            decode(self, packet)

        video = open_video(clip("mp4"))
        monkeypatch.setattr(video_av._Decoder, "_decode", counting)
        assert len(read(video, [0, 37])) == 2
        assert decoded < 20

    def test_a_path_and_a_data_uri_hold_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "ünï côde.mp4"
        path.write_bytes(clip("mp4"))
        uri = "data:video/mp4;base64," + base64.b64encode(clip("mp4")).decode()
        want = read(open_video(clip("mp4")), [3, 30])
        for source in (path, str(path), uri):
            np.testing.assert_array_equal(read(open_video(source), [3, 30]), want)

    def test_threads_read_one_video_at_once(self) -> None:
        video, results = open_video(clip("mp4")), []
        threads = [threading.Thread(target=lambda: results.append(read(video))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        for result in results:
            np.testing.assert_array_equal(result, known_frames("mp4"))

    def test_reading_may_stop_at_any_frame(self) -> None:
        video = open_video(clip("mp4"))
        frames = video.frames([0, 20, 39])
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        assert len(read(video)) == FRAMES

    def test_groups_are_those_of_the_same_frames_in_a_list(self) -> None:
        family = VideoSettings()
        file = prepare_video(clip("mp4"), family, fps=4)
        pictures = prepare_video(all_frames(clip("mp4")), family, fps=4, source_fps=10)
        assert file.indices == pictures.indices
        assert file.grid_thw == pictures.grid_thw == (8, 4, 4)
        assert file.timestamps == pictures.timestamps
        assert [group.key for group in file.groups()] == [group.key for group in pictures.groups()]


@cache
def known_frames(kind: str) -> list[Frames]:
    return all_frames(clip(kind))


class TestTimes:
    def test_the_rate_is_the_exact_fraction(self) -> None:
        data = encoded(pictures(12), *KINDS["mp4"], rate=Fraction(30000, 1001))
        assert open_video(data).fps == 30000 / 1001

    @pytest.mark.parametrize("kind", ["mp4", "mkv"])
    def test_frames_at_uneven_times_are_counted(self, kind: str) -> None:
        times = [int(time) for time in np.cumsum(np.random.default_rng(3).choice([20, 40, 400], FRAMES))]
        data = encoded(pictures(), *KINDS[kind], rate=30, times=times)
        video = open_video(data)
        assert video.total_frames == FRAMES
        assert video.fps == pytest.approx((FRAMES - 1) * 1000 / (times[-1] - times[0]), rel=0.06)
        whole = all_frames(data)
        np.testing.assert_array_equal(read(video, [1, 17, 38]), [whole[index] for index in (1, 17, 38)])

    def test_a_start_that_is_not_zero(self) -> None:
        data = encoded(pictures(), *KINDS["mkv"], times=[7000 + 100 * index for index in range(FRAMES)])
        np.testing.assert_array_equal(read(open_video(data), [0, 39]), [all_frames(data)[i] for i in (0, 39)])

    @pytest.mark.parametrize("rotation", [-90, 90, 180])
    def test_frames_are_turned_as_the_file_says(self, rotation: int) -> None:
        if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        corner = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
        corner[:, : HEIGHT // 2, : WIDTH // 2] = 255
        video = open_video(encoded(corner, *KINDS["mp4"], rotation=rotation))
        assert (video.height, video.width) == ((HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT))
        (frame,) = read(video, [2])
        assert frame.shape == (video.height, video.width, 3)
        rows, columns = video.height // 4, video.width // 4
        corners = {
            (vertical, horizontal)
            for vertical in (1, 3)
            for horizontal in (1, 3)
            if frame[vertical * rows, horizontal * columns].mean() > 128
        }
        assert corners == {{-90: (1, 3), 90: (3, 1), 180: (3, 3)}[rotation]}

    def test_a_video_of_one_frame(self) -> None:
        video = open_video(encoded(pictures(1), *KINDS["mp4"]))
        assert (video.total_frames, len(read(video))) == (1, 1)


class TestRefused:
    @pytest.mark.parametrize(
        "data",
        [
            b"Just a text.\n" * 200,
            np.random.default_rng(0).bytes(5000),
            b"\x7fELF" + bytes(2000),
            b"<html><body>no</body></html>",
            b"\0",
        ],
        ids=["text", "noise", "program", "page", "one byte"],
    )
    def test_what_is_no_video(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "odd.mp4"
        path.write_bytes(data)
        with pytest.raises(MediaError, match=r"^video: .*odd\.mp4' is no video"):
            open_video(path)

    @pytest.mark.parametrize(
        "text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"]
    )
    def test_playlists_cannot_open_other_files(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "a.ts").write_bytes(clip("ts"))
        path = tmp_path / "list"
        path.write_text(text.format("a.ts"), encoding="ascii")
        with pytest.raises(MediaError, match=r"^video: .* is no video"):
            open_video(path)

    def test_a_picture_that_pillow_does_not_animate(self) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (32, 32)).save(stream, "JPEG")
        with pytest.raises(MediaError, match=r"^video: .* is no video"):
            open_video(stream.getvalue())

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mp3"])
    def test_sound_only(self, container: str) -> None:
        with pytest.raises(MediaError, match=r"^video: data of \d+ bytes (has no video in it|is no video)"):
            open_video(sound(container))

    def test_no_frames(self) -> None:
        with pytest.raises(MediaError, match=r"^video: data of \d+ bytes "):
            open_video(encoded(pictures(0), *KINDS["mkv"]))

    def test_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(limit: str, value: int, message: str) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(video_av, limit, value)
                with pytest.raises(MediaError, match=f"^video: .* {message}"):
                    open_video(clip("mp4"))

        refused(
            "MAX_SOURCE_PIXELS", HEIGHT * WIDTH - 1, f"has frames of {WIDTH} x {HEIGHT} pixels, the limit is"
        )
        refused("MAX_SOURCE_FRAMES", FRAMES - 1, f"has more than {FRAMES - 1} frames")
        refused("MAX_DURATION", 3, "lasts 4 seconds, the limit is 3")
        assert open_video(clip("mp4")).total_frames == FRAMES

    def test_a_size_that_changes(self) -> None:
        both = clip("raw h264") + encoded(pictures(8, 64, 80), *KINDS["raw h264"])
        video = open_video(both)
        assert len(read(video, [0, 20])) == 2
        with pytest.raises(MediaError, match=f"changes its size from {WIDTH} x {HEIGHT} pixels at frame 45"):
            read(video, [0, 45])


class TestDamage:
    def test_in_the_middle(self, tmp_path: Path) -> None:
        path = tmp_path / "torn.mp4"
        data = encoded(pictures(), *KINDS["mp4"], path=path)
        middle = (data.index(b"mdat") + len(data)) // 2
        path.write_bytes(data[:middle] + bytes(len(data) - middle))
        video = prepare_video(path, VideoSettings(), num_frames=8, where="videos[4]")
        groups = video.groups()
        next(groups)
        with pytest.raises(MediaError, match=r"^videos\[4\]: .*torn\.mp4' .*damaged"):
            list(groups)

    def test_a_file_that_became_shorter(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mkv"
        path.write_bytes(clip("mkv"))
        video = open_video(path)
        path.write_bytes(clip("mkv")[: len(clip("mkv")) // 2])
        with pytest.raises(MediaError, match=r"^video: .*a\.mkv' is damaged or cut short: frame 39 of 40"):
            read(video, [0, 39])

    @settings(max_examples=60)
    @given(data=st.data())
    @pytest.mark.parametrize("kind", ["mp4", "mkv", "avi mpeg4", "ts"])
    def test_any_bytes_are_refused_or_read(self, kind: str, data: st.DataObject) -> None:
        broken = bytearray(clip(kind))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(broken) - 1))
            broken[start : start + 8] = data.draw(st.binary(min_size=0, max_size=8))
        with contextlib.suppress(MediaError):
            video = open_video(bytes(broken))
            for frame in video.frames([0, video.total_frames // 2, video.total_frames - 1]):
                assert frame.shape == (video.height, video.width, 3)


def sound(container: str) -> bytes:
    encoder = "libmp3lame" if container == "mp3" else "aac"
    stream_bytes = io.BytesIO()
    with av.open(stream_bytes, "w", format=container) as output:
        stream = output.add_stream(encoder, rate=44100)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return stream_bytes.getvalue()
