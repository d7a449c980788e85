"""Images prepared here against recordings of the original code (see tests/golden/README.md).

What holds: with the same order of passes, width first, the pixels are those of Pillow to the bit, and so are
the normalised values. torchvision, which also goes width first, differs by one level in less than 0.3 % of
the pixels. Pillow 13 resizes some images height first; those are compared with its width-first result.
"""

from __future__ import annotations

import numpy as np
import pytest

import golden
import golden_media
from edgewise.media.prepared import PreparedImage, prepare_image
from edgewise.media.settings import ImageSettings

HEIGHT_FIRST = "VH"


def every_image(case: str) -> list[tuple[str, int]]:
    return [(case, index) for index in range(len(golden_media.images(case)))]


ALL_IMAGES = [pair for case in golden_media.IMAGE_CASES for pair in every_image(case)]
OTHER_ORDER = [
    (case, index)
    for case, index in ALL_IMAGES
    if golden_media.images(case)[index].get("pillow_pass_order") == HEIGHT_FIRST
]
SAME_ORDER = [pair for pair in ALL_IMAGES if pair not in OTHER_ORDER]
BY_TORCHVISION = [
    (case, index) for case, index in ALL_IMAGES if f"img{index}.resized_u8_torchvision" in golden.arrays(case)
]


def prepare(case: str, file: str) -> PreparedImage:
    settings = ImageSettings.read(golden_media.read_file(case))
    return prepare_image(golden.FOLDER / case / file, settings)


def prepared(case: str, index: int) -> PreparedImage:
    return prepare(case, golden_media.images(case)[index]["file"])


def test_there_are_images_of_both_orders() -> None:
    assert len(SAME_ORDER) == 14
    assert OTHER_ORDER == [("image", 9)]
    assert len(BY_TORCHVISION) == 6


@pytest.mark.parametrize(("case", "index"), ALL_IMAGES)
def test_grid(case: str, index: int) -> None:
    image = prepared(case, index)
    grid = golden.arrays(case)[f"img{index}.image_grid_thw"][0].tolist()
    assert list(image.grid_thw) == grid
    (group,) = image.groups()
    assert list(group.grid_hw) == grid[1:]
    assert group.tokens == image.tokens == grid[1] * grid[2] // 4


@pytest.mark.parametrize(("case", "index"), SAME_ORDER)
def test_pixel_values_are_equal_to_the_bit(case: str, index: int) -> None:
    levels = golden.arrays(case)[f"img{index}.pixel_levels"]
    (group,) = prepared(case, index).groups()
    np.testing.assert_array_equal(group.pixel_values(), golden_media.pixel_values(levels))


@pytest.mark.parametrize(("case", "index"), OTHER_ORDER)
def test_width_first_pixels_are_pillows_to_the_bit(case: str, index: int) -> None:
    want = golden.arrays(case)[f"img{index}.resized_u8_pil_hv"]
    np.testing.assert_array_equal(prepared(case, index).pixels, want)


@pytest.mark.parametrize(("case", "index"), BY_TORCHVISION)
def test_pixels_are_within_a_level_of_torchvision(case: str, index: int) -> None:
    want = golden.arrays(case)[f"img{index}.resized_u8_torchvision"].astype(int)
    difference = np.abs(prepared(case, index).pixels - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.003


def test_images_of_a_prompt_with_several() -> None:
    """In the second prompt one image was resized height first, so it is left out."""
    case = "multi_image_multi_video"
    prompts = golden.read_json(f"{case}/case.json")["prompts"]
    arrays = golden.arrays(case)
    for index, kept in [(0, 2), (1, 1)]:
        images = [prepare(case, file) for file in prompts[index]["images"]]
        assert [list(image.grid_thw) for image in images] == arrays[f"p{index}.image_grid_thw"].tolist()
        got = np.concatenate([group.pixel_values() for image in images[:kept] for group in image.groups()])
        want = golden_media.pixel_values(arrays[f"p{index}.pixel_levels"])
        np.testing.assert_array_equal(got, want[: len(got)])


def test_image_at_the_limits_of_the_real_checkpoints() -> None:
    (row,) = golden.read_json("image/case.json")["real_limit_images"]
    image = prepare_image(
        golden.FOLDER / "image" / row["file"],
        ImageSettings(),
        min_pixels=row["min_pixels"],
        max_pixels=row["max_pixels"],
    )
    assert list(image.grid_thw) == row["grid_thw"]
    assert list(image.pixels.shape[:2]) == row["resized_hw"]
    kept = golden.arrays("image")["reallimits0.resized_u8_pil_rows"]
    np.testing.assert_array_equal(image.pixels[::8], kept)
    (group,) = image.groups()
    values = group.pixel_values().astype(np.float64)
    assert values.sum() == pytest.approx(row["pixel_values_sum"], abs=0.1)
    assert np.abs(values).sum() == pytest.approx(row["pixel_values_abs_sum"], abs=0.1)
