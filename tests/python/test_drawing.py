"""The package's own pictures: like those of the training, and as described."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image

import golden
from edgewise.demo import drawing
from edgewise.demo.drawing import BACKGROUNDS, COLORS, FRAMES, KINDS, MOTIONS, SIDE, Shape

TRAINING_PICTURES = {
    "image00.png": ([Shape("star", "red", 21, 74, 14), Shape("star", "purple", 72, 32, 19)], 1),
    "image02.png": ([Shape("square", "black", 31, 45, 27)], 1),
    "image03.png": ([Shape("triangle", "green", 63, 50, 25)], 3),
    "image08.png": ([Shape("circle", "black", 54, 37, 30)], 2),
    "image09.png": (
        [
            *(Shape("triangle", "blue", x, y, 9) for x, y in [(78, 14), (15, 15), (13, 51)]),
            Shape("triangle", "blue", 13, 81, 11),
        ],
        1,
    ),
    "image10.png": ([Shape("star", "yellow", 33, 61, 33)], 1),
    "image11.png": ([Shape("circle", "orange", 65, 21, 14), Shape("square", "blue", 31, 69, 14)], 1),
}
"""Shapes and background of pictures the model was trained on, measured from their pixels."""


@pytest.mark.parametrize("name", list(TRAINING_PICTURES))
def test_pixels_are_those_of_the_training(name: str) -> None:
    shapes, background = TRAINING_PICTURES[name]
    with Image.open(golden.FOLDER / "demo_samples" / name) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(drawing.draw(shapes, BACKGROUNDS[background])), expected)


def test_a_clip_of_the_training() -> None:
    """A circle that shrinks by 2.6 pixels from frame to frame."""
    for frame in range(FRAMES):
        with Image.open(golden.FOLDER / "demo_samples" / f"video3_{frame}.png") as picture:
            expected = np.asarray(picture.convert("RGB"))
        shape = Shape("circle", "yellow", 42, 59, 27 - 2.6 * frame)
        np.testing.assert_array_equal(np.asarray(drawing.draw([shape], BACKGROUNDS[1])), expected)


def ink(image: Image.Image, background: drawing.Rgb) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where a picture differs from its background, with one row and column of neighbours around it."""
    return np.pad((np.asarray(image) != np.array(background)).any(axis=-1), 1)


@pytest.mark.parametrize("seed", range(40))
def test_shapes_lie_in_the_picture_apart_from_each_other(seed: int) -> None:
    rng = Random(seed)
    for shapes in (
        drawing.one_shape(rng),
        drawing.two_shapes(rng),
        *([shape] for shape in drawing.moving_shape(rng, MOTIONS[seed % len(MOTIONS)])),
    ):
        for shape in shapes:
            assert shape.radius <= shape.x <= SIDE - shape.radius
            assert shape.radius <= shape.y <= SIDE - shape.radius
        alone = [ink(drawing.draw([shape], BACKGROUNDS[0]), BACKGROUNDS[0]) for shape in shapes]
        assert (np.sum(alone, axis=0) <= 1).all()


@pytest.mark.parametrize("count", range(1, 10))
def test_equal_shapes(count: int) -> None:
    shapes = drawing.equal_shapes(Random(count), count)
    assert len(shapes) == count
    assert len({(shape.kind, shape.color) for shape in shapes}) == 1
    assert len({(shape.x // 32, shape.y // 32) for shape in shapes}) == count


@pytest.mark.parametrize(
    ("motion", "sign"),
    [
        ("moves left", (-1, 0, 0)),
        ("moves right", (1, 0, 0)),
        ("moves up", (0, -1, 0)),
        ("moves down", (0, 1, 0)),
        ("stays still", (0, 0, 0)),
        ("grows", (0, 0, 1)),
        ("shrinks", (0, 0, -1)),
    ],
)
def test_motions(motion: str, sign: tuple[int, int, int]) -> None:
    assert motion in MOTIONS
    frames = drawing.moving_shape(Random(5), motion)
    assert len(frames) == FRAMES
    steps = np.diff([(shape.x, shape.y, shape.radius) for shape in frames], axis=0)
    np.testing.assert_array_equal(np.sign(steps), [sign] * (FRAMES - 1))


def test_every_kind_and_colour_comes_up() -> None:
    shapes = [shape for seed in range(100) for shape in drawing.two_shapes(Random(seed))]
    assert {shape.kind for shape in shapes} == set(KINDS)
    assert {shape.color for shape in shapes} == set(COLORS)


def test_descriptions() -> None:
    orange, red = Shape("circle", "orange", 20, 30, 9), Shape("star", "red", 70, 40, 9)
    low = Shape("square", "black", 30, 90, 9)
    assert drawing.description([orange]) == "An orange circle."
    assert drawing.description([red, orange]) == "An orange circle left of a red star."
    assert drawing.description([low, orange]) == "An orange circle above a black square."
    assert drawing.happening(red, "grows") == "The red star grows."
