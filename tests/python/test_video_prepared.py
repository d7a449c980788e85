"""Videos prepared for the tower, against recordings of the original code. None of this needs PyAV."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import golden
import golden_media
from edgewise.media import MediaError, PreparedVideo, VideoSettings, prepare_image, prepare_video
from edgewise.media.sampling import MAX_SAMPLED_FRAMES, timestamp_text
from edgewise.media.settings import ImageSettings

CASE = golden.FOLDER / "video"
VIDEOS: list[dict[str, Any]] = golden.read_json("video/case.json")["videos"]


def settings() -> VideoSettings:
    return VideoSettings.read(golden_media.read_file("video"))


def recorded(index: int) -> PreparedVideo:
    row = VIDEOS[index]
    frames = [CASE / name for name in row["frames"]]
    return prepare_video(frames, settings(), source_fps=row["metadata"]["fps"], **row["sampling_kwargs"])


def noise(count: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("index", range(len(VIDEOS)))
class TestRecordings:
    def test_frames_size_and_times(self, index: int) -> None:
        row, video = VIDEOS[index], recorded(index)
        assert list(video.indices) == row["frame_indices"]
        assert [video.height, video.width] == row["resized_hw"]
        assert list(video.grid_thw) == row["grid_thw"]
        assert video.timestamps == row["timestamps"]
        groups, rows, columns = row["grid_thw"]
        assert (
            video.tokens == groups * rows * columns // 4 == row["expanded_prompt_flat"].count("<|video_pad|>")
        )
        for seconds in video.timestamps:
            assert timestamp_text(seconds) + "<|vision_start|>" in row["expanded_prompt_flat"]

    def test_pixels_are_within_one_level(self, index: int) -> None:
        values = np.concatenate([group.pixel_values() for group in recorded(index).groups()])
        levels = np.rint(values * 127.5 + 127.5)
        np.testing.assert_allclose(values, (levels - 127.5) / 127.5, atol=1e-6)
        want = golden.arrays("video")[f"vid{index}.pixel_levels_videos"]
        off = np.abs(levels - want)
        assert off.max() <= 1
        assert (off > 0).mean() < 0.003


class TestGroups:
    def test_an_odd_last_frame_counts_twice(self) -> None:
        video = prepare_video(noise(5), settings(), source_fps=2)
        assert video.grid_thw[0] == 3
        groups = list(video.groups())
        assert len(groups) == 3
        assert groups[2].second is groups[2].first
        assert not np.array_equal(groups[1].first, groups[1].second)
        assert video.timestamps == [0.25, 1.25, 2.0]

    def test_one_frame_is_a_group_like_an_image(self) -> None:
        picture = noise(1, 96, 128)[0]
        video = prepare_video([picture], settings(), min_pixels=2, max_pixels=2 * 96 * 128)
        assert video.grid_thw == (1, 6, 8)
        assert video.timestamps == [0.0]
        (group,) = video.groups()
        (image,) = prepare_image(picture, ImageSettings(), min_pixels=1).groups()
        np.testing.assert_array_equal(group.pixel_values(), image.pixel_values())

    def test_one_sampled_frame_of_many(self) -> None:
        assert prepare_video(noise(9), settings(), num_frames=1).grid_thw[0] == 1

    def test_each_call_reads_anew_and_calls_do_not_disturb_each_other(self) -> None:
        stream = io.BytesIO()
        pictures = [Image.fromarray(frame) for frame in noise(6)]
        pictures[0].save(stream, "PNG", save_all=True, append_images=pictures[1:], duration=100)
        video = prepare_video(stream.getvalue(), settings(), num_frames=6)
        first, second = video.groups(), video.groups()
        assert [group.key for pair in zip(first, second, strict=True) for group in pair] == [
            group.key for group in video.groups() for _ in range(2)
        ]

    def test_memory_does_not_grow_with_the_number_of_frames(self) -> None:
        few, many = (peak_memory(prepare_video([noise(1)[0]] * count, settings())) for count in (8, 400))
        assert many < 1.5 * few

    def test_damage_in_the_middle_names_the_frame(self) -> None:
        video = prepare_video([*noise(3), b"no picture", *noise(4)], settings(), fps=24, where="videos[1]")
        groups = video.groups()
        next(groups)
        with pytest.raises(MediaError, match=r"^videos\[1\]\[3\]: .*not an image"):
            next(groups)


def peak_memory(video: PreparedVideo) -> int:
    tracemalloc.start()
    try:
        for group in video.groups():
            group.pixel_values()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestArguments:
    def test_sampling(self) -> None:
        def count(**arguments: Any) -> int:
            return len(prepare_video(noise(96, 32, 32), settings(), **arguments).indices)

        assert count() == 8
        assert count(fps=4) == 16
        assert count(source_fps=48) == 4
        assert count(num_frames=3) == 3
        assert count(fps=24, max_frames=10) == 10
        assert count(fps=0.1, min_frames=6) == 6

    def test_pixel_limits_are_those_of_all_frames(self) -> None:
        def size(frames: int) -> int:
            video = prepare_video(
                noise(frames, 128, 128), settings(), num_frames=frames, max_pixels=4 * 128 * 128
            )
            return video.height

        assert [size(4), size(8), size(16)] == [128, 64, 64]

    def test_a_checkpoint_may_allow_more_frames_than_are_supported(self) -> None:
        read = VideoSettings.read(lambda _: b'{"max_frames": 100000, "min_frames": 50000}')
        assert len(prepare_video([noise(1, 32, 32)[0]] * 5000, read).indices) == MAX_SAMPLED_FRAMES

    def test_two_ways_to_say_how_many(self) -> None:
        with pytest.raises(ValueError, match=r"^videos\[0\]: fps and num_frames exclude each other"):
            prepare_video(noise(4), settings(), fps=1, num_frames=2, where="videos[0]")

    @pytest.mark.parametrize("name", ["fps", "num_frames", "min_frames", "max_frames", "min_pixels"])
    def test_zero_is_out_of_range(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name}: "):
            prepare_video(noise(4), settings(), **{name: 0})  # type: ignore[arg-type]

    def test_a_strip_is_refused(self) -> None:
        with pytest.raises(MediaError, match=r"^video: .*200 times"):
            prepare_video(noise(4, 1, 300), settings())
