"""Video files (MP4, MKV, WebM, MOV, AVI, ...) read with PyAV, which is optional and imported when needed.

A file is gone through twice. When it is opened, its packets are read but not decoded: their times, sorted,
say which is the n-th frame in the order they are shown, also where frames come at uneven times. When frames
are wanted, decoding starts anew at the last keyframe before each, if it has not come so far already. Packets
between are read without being decoded, and so are those on the way to which no other frame refers. Positions
in the file are not jumped to: few containers can do that exactly, and reading costs little beside decoding.

Of MPEG streams (TS, PS) any piece is a whole file; the others tell whether something is missing at the end.

Decoding uses one thread: of damaged files, what several of them make depends on the machine.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from edgewise.media.file import MediaFile
from edgewise.media.image import MAX_SOURCE_PIXELS
from edgewise.media.sampling import DEFAULT_SOURCE_FPS, MAX_DURATION, MAX_SOURCE_FRAMES

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,ivf,mpegvideo,m4v,h264,hevc,obu"
"""What FFmpeg calls the formats that are opened. Others are no videos, or, as playlists, name other files."""

DECODE_ORDER_TIMES = "avi"
"""Containers whose packets carry times in the order of decoding, not of showing."""

SKIPPING_DECODERS = ("h264", "hevc")
"""Those that may be told at each packet to pass over a frame to which no other refers."""

READ_AT_ONCE = 2**18
"""Bytes; half the time of PyAV's default for going through a file."""

MICROSECONDS = 1_000_000
"""In a second; the unit of the duration of a whole file."""

MISSING_SECONDS = 0.5
"""A file that ends this much earlier than it says was cut short."""

MISSING_FRAMES = 2
"""Frames at the end that may not come out of the decoder: packets without a picture, second fields."""


class VideoStreamFile:
    """The first video stream of a file."""

    def __init__(self, file: MediaFile, source_fps: float | None) -> None:
        """Read the times of all frames, and decode the first one.

        Args:
            file: where the bytes are.
            source_fps: frames per second, instead of what the file says.

        Raises:
            MediaError: if PyAV is missing, or the file is no video, is damaged, cut short or too large.
        """
        self._file = file
        with _opened(file) as (stream, packets):
            self._timeline = _timeline(file, stream, packets)
            fps = _fps(stream, self._timeline)
        self.total_frames = self._timeline.frames
        self.fps = fps if source_fps is None else source_fps
        seconds = self.total_frames / fps
        if seconds > MAX_DURATION:
            raise file.error(f"lasts {seconds:.0f} seconds, the limit is {MAX_DURATION}")
        self.height, self.width = next(self._decoded([0])).shape[:2]

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Return the frames at `indices`, which ascend, one at a time."""
        for index, frame in zip(indices, self._decoded(indices), strict=True):
            if frame.shape != (self.height, self.width, 3):
                raise self._file.error(
                    f"changes its size from {self.width} x {self.height} pixels at frame {index}"
                )
            yield frame

    def _decoded(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        with _opened(self._file) as (stream, packets):
            decoder = _Decoder(stream, packets, self._timeline, indices)
            for index in indices:
                frame = decoder.frame(index)
                if frame is None:
                    raise self._file.error(
                        f"is damaged or cut short: frame {index} of {self.total_frames} is missing"
                    )
                if frame.is_corrupt:
                    raise self._file.error(f"is damaged at frame {index} of {self.total_frames}")
                yield _pixels(frame)


@dataclass(frozen=True)
class _Timeline:
    """When each frame is shown, in units of the stream's time base."""

    frames: int
    times: NDArray[np.int64]
    """In the order of showing, no two the same; empty if the file does not tell, so frames are counted."""
    keyframes: NDArray[np.int64]
    """Those times at which decoding can start, in order."""

    def keyframe_before(self, time: int) -> int:
        """Return the time of the last keyframe that is not after `time`, else of the first one."""
        return int(self.keyframes[max(int(np.searchsorted(self.keyframes, time, "right")) - 1, 0)])


class _Decoder:
    """Finds frames that are asked for in ascending order."""

    def __init__(
        self,
        stream: VideoStream,
        packets: Iterator[Packet[VideoStream]],
        timeline: _Timeline,
        indices: Sequence[int],
    ) -> None:
        self._stream = stream
        self._packets = packets
        self._timeline = timeline
        self._counts = timeline.times.size == 0
        self._wanted = set() if self._counts else {int(timeline.times[index]) for index in indices}
        self._may_skip = stream.codec_context.name in SKIPPING_DECODERS
        self._decoded: deque[VideoFrame] = deque()
        self._shown: VideoFrame | None = None
        self._taken = 0
        self._newest_keyframe: int | None = None

    def frame(self, index: int) -> VideoFrame | None:
        """Return a frame, or None if the packets end too early."""
        return self._nth_frame(index) if self._counts else self._frame_at(index)

    def _frame_at(self, index: int) -> VideoFrame | None:
        """Return the frame of its time; if it is missing, the one before, or else the one after."""
        time = int(self._timeline.times[index])
        self._go_to(self._timeline.keyframe_before(time))
        while self._shown is None or self._time_of(self._shown) < time:
            following = self._peek()
            if following is None:
                return self._last(int(self._timeline.times[max(index - MISSING_FRAMES, 0)]))
            if self._time_of(following) > time:
                return self._shown or following
            self._shown = self._decoded.popleft()
        return self._shown

    def _last(self, earliest: int) -> VideoFrame | None:
        return self._shown if self._shown is not None and self._time_of(self._shown) >= earliest else None

    def _nth_frame(self, index: int) -> VideoFrame | None:
        """Return a frame by counting those that come out of the decoder."""
        while self._taken <= index:
            if self._peek() is None:
                return self._shown if index < self._taken + MISSING_FRAMES else None
            self._shown = self._decoded.popleft()
            self._taken += 1
        return self._shown

    def _go_to(self, keyframe: int) -> None:
        """Skip to a keyframe, unless its packet was decoded already."""
        if self._newest_keyframe is not None and keyframe <= self._newest_keyframe:
            return
        packet = next((packet for packet in self._packets if packet.pts == keyframe), None)
        if self._newest_keyframe is not None:
            self._stream.codec_context.flush_buffers()
        self._decoded.clear()
        self._shown = None
        if packet is not None:
            self._decode(packet)

    def _peek(self) -> VideoFrame | None:
        """Return the next frame in the order of showing, None at the end."""
        while not self._decoded:
            packet = next(self._packets, None)
            if packet is None:
                return None
            self._decode(packet)
        return self._decoded[0]

    def _decode(self, packet: Packet[VideoStream]) -> None:
        time = packet.pts
        if not self._counts and time is not None:
            if self._may_skip:
                self._stream.codec_context.skip_frame = "DEFAULT" if time in self._wanted else "NONREF"
            if packet.is_keyframe:
                self._newest_keyframe = max(time, self._newest_keyframe or time)
        self._decoded.extend(self._stream.decode(packet))

    def _time_of(self, frame: VideoFrame) -> int:
        return int(self._timeline.times[0]) if frame.pts is None else frame.pts


@contextmanager
def _opened(file: MediaFile) -> Iterator[tuple[VideoStream, Iterator[Packet[VideoStream]]]]:
    """Give the video stream and its packets; the last packet is empty and makes the decoder finish."""
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise file.error(
            "is no GIF, WebP or PNG animation, and other videos need PyAV: pip install edgewise[video]"
        ) from None
    with file.open() as source:
        try:
            options = {"format_whitelist": CONTAINERS}
            with av.open(
                source,
                "r",
                container_options=options,
                metadata_errors="replace",
                buffer_size=READ_AT_ONCE,
            ) as container:
                stream = _video_stream(file, container.streams.video)
                yield stream, _packets(file, container, stream)
        except (av.FFmpegError, OSError) as error:
            raise file.error(f"is no video, is damaged or cut short: {error.strerror}") from error


def _packets(
    file: MediaFile, container: InputContainer, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV counts streams when it opens a file, and meets another one here.
        raise file.error("is damaged, or has streams that begin in its middle") from None


def _video_stream(file: MediaFile, streams: Sequence[VideoStream]) -> VideoStream:
    """Return the first stream that is no cover picture."""
    from av.stream import Disposition

    for stream in streams:
        if not stream.disposition & Disposition.attached_pic:
            break
    else:
        raise file.error("has no video in it, but perhaps sound, or is cut short")
    if stream.codec_context is None:
        raise file.error("is of a kind that PyAV cannot decode")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_SOURCE_PIXELS:
        raise file.error(f"has frames of {width} x {height} pixels, the limit is {MAX_SOURCE_PIXELS}")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _timeline(file: MediaFile, stream: VideoStream, packets: Iterator[Packet[VideoStream]]) -> _Timeline:
    """Read all packets, and see that the file is whole."""
    times, keyframes = array("q"), array("q")
    count, end, ends_damaged = 0, 0, False
    for packet in packets:
        if not packet.size or packet.is_discard:
            continue
        count += 1
        if count > MAX_SOURCE_FRAMES:
            raise file.error(f"has more than {MAX_SOURCE_FRAMES} frames")
        ends_damaged = packet.is_corrupt
        if packet.pts is not None:
            times.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keyframes.append(packet.pts)
    if count == 0:
        raise file.error("has no frames, or is cut short")
    if ends_damaged or _is_short(stream, count, end):
        raise file.error("is cut short: frames are missing at its end")
    ordered = np.sort(np.array(times, np.int64))
    in_order_of_showing = stream.container.format.name != DECODE_ORDER_TIMES
    all_differ = len(times) == count and bool((np.diff(ordered) > 0).all())
    usable = in_order_of_showing and all_differ and len(keyframes) > 0
    return _Timeline(count, ordered if usable else ordered[:0], np.sort(np.array(keyframes, np.int64)))


def _is_short(stream: VideoStream, count: int, end: int) -> bool:
    """Whether a file has clearly fewer frames, or ends clearly earlier, than it says."""
    if stream.container.format.name == DECODE_ORDER_TIMES:
        missing_frames: int = stream.frames - count
        return missing_frames > MISSING_SECONDS * float(stream.average_rate or DEFAULT_SOURCE_FPS)
    if not stream.time_base:
        return False
    found = end * stream.time_base
    container = cast("InputContainer", stream.container)
    if stream.duration:
        found -= (stream.start_time or 0) * stream.time_base
        said = stream.duration * stream.time_base
    elif len(container.streams) == 1 and container.duration:
        said = Fraction(container.duration, MICROSECONDS)
    else:
        said = _seconds(stream.metadata.get("DURATION", ""))
    missing: Fraction = said - found
    return missing > MISSING_SECONDS


def _seconds(clock: str) -> Fraction:
    """Return 00:01:02.500000000, as MKV files give the time of their end, in seconds; 0 if it is no time."""
    try:
        hours, minutes, seconds = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except (ValueError, ZeroDivisionError):
        return Fraction(0)


def _fps(stream: VideoStream, timeline: _Timeline) -> float:
    """Return the average rate in the header, or that of the frames if it is missing or far from it."""
    said = float(stream.average_rate or 0)
    times = timeline.times
    if len(times) < 2 or not stream.time_base:
        return said if said > 0 else DEFAULT_SOURCE_FPS
    counted = (len(times) - 1) / float(int(times[-1] - times[0]) * stream.time_base)
    return said if 0.95 * counted < said < 1.05 * counted else counted


def _pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a frame as uint8 [height, width, 3], turned as the file says it is to be shown."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    quarters = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels
