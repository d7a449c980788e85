"""Pictures of plain shapes, 96 x 96 pixels, and clips of one shape: what the demo model was trained to see.

Whole radii and places and flat colours without smoothed edges. Pillow rounds corners that fall between pixels
towards zero; a test holds the pixels to the original pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageDraw

SIDE = 96
FRAMES = 8
FRAMES_PER_SECOND = 2.0

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "orange": (245, 140, 30),
    "purple": (150, 60, 190),
    "black": (20, 20, 20),
}
BACKGROUNDS: tuple[Rgb, ...] = ((255, 255, 255), (235, 235, 235), (225, 235, 245), (250, 245, 230))
KINDS = ("circle", "square", "triangle", "star")
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "stays still", "grows", "shrinks")


@dataclass(frozen=True)
class Shape:
    """A shape of one colour: where its middle is and how far it reaches from there, in pixels."""

    kind: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """Colour and kind with their article, as in "an orange star"."""
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.kind}"


def draw(shapes: list[Shape], background: Rgb) -> Image.Image:
    """Draw shapes on a plain background."""
    image = Image.new("RGB", (SIDE, SIDE), background)
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        color = COLORS[shape.color]
        if shape.kind == "circle":
            canvas.ellipse(_box(shape, shape.radius), fill=color)
        elif shape.kind == "square":
            canvas.rectangle(_box(shape, 0.9 * shape.radius), fill=color)
        else:
            canvas.polygon(_triangle(shape) if shape.kind == "triangle" else _star(shape), fill=color)
    return image


def _box(shape: Shape, reach: float) -> tuple[float, float, float, float]:
    return shape.x - reach, shape.y - reach, shape.x + reach, shape.y + reach


def _triangle(shape: Shape) -> list[tuple[float, float]]:
    """Return the corners of a triangle that stands on one side, a little lower than wide."""
    x, y, reach = shape.x, shape.y, shape.radius
    return [(x, y - reach), (x + reach, y + 0.8 * reach), (x - reach, y + 0.8 * reach)]


def _star(shape: Shape) -> list[tuple[float, float]]:
    """Return the corners of a star with five points, the first on top."""
    corners = []
    for corner in range(10):
        angle = math.radians(36 * corner - 90)
        reach = shape.radius * (1.0 if corner % 2 == 0 else 0.42)
        corners.append((shape.x + reach * math.cos(angle), shape.y + reach * math.sin(angle)))
    return corners


def one_shape(rng: Random) -> list[Shape]:
    """Place a large shape around the middle."""
    radius = rng.randint(18, 34)
    low, high = max(radius, 30), min(SIDE - radius, 66)
    x, y = rng.randint(low, high), rng.randint(low, high)
    return [Shape(rng.choice(KINDS), rng.choice(list(COLORS)), x, y, radius)]


def two_shapes(rng: Random) -> list[Shape]:
    """Place two shapes of different colours, one in each half: left and right, or above and below."""
    sideways = rng.random() < 0.5
    shapes = []
    for color, middle in zip(rng.sample(list(COLORS), 2), rng.sample([24, 72], 2), strict=True):
        near, free = middle + rng.randint(-3, 3), rng.randint(22, 74)
        x, y = (near, free) if sideways else (free, near)
        shapes.append(Shape(rng.choice(KINDS), color, x, y, rng.randint(13, 19)))
    return shapes


def equal_shapes(rng: Random, count: int) -> list[Shape]:
    """Place one to nine small shapes of one kind and colour, each in its own ninth of the picture."""
    kind, color = rng.choice(KINDS), rng.choice(list(COLORS))
    places = rng.sample([(x, y) for x in (16, 48, 80) for y in (16, 48, 80)], count)
    return [
        Shape(kind, color, x + rng.randint(-3, 3), y + rng.randint(-3, 3), rng.randint(8, 12))
        for x, y in places
    ]


def moving_shape(rng: Random, motion: str) -> list[Shape]:
    """Return one shape as it is in each of eight frames of a clip; `motion` is one of `MOTIONS`."""
    x, y = rng.randint(38, 58), rng.randint(38, 58)
    shape = Shape(rng.choice(KINDS), rng.choice(list(COLORS)), x, y, rng.randint(11, 16))
    times = [frame / (FRAMES - 1) for frame in range(FRAMES)]
    if motion in ("moves left", "moves up", "shrinks"):
        times.reverse()
    if motion in ("grows", "shrinks"):
        small, large = rng.uniform(8, 11), rng.randint(24, 32)
        return [replace(shape, radius=small + (large - small) * time) for time in times]
    reach = rng.uniform(20, 22)
    path = [reach * (2 * time - 1) for time in times]
    if motion in ("moves left", "moves right"):
        return [replace(shape, x=x + step) for step in path]
    if motion in ("moves up", "moves down"):
        return [replace(shape, y=y + step) for step in path]
    return [shape] * FRAMES


def description(shapes: list[Shape]) -> str:
    """Say what is in a picture of one or two shapes, in the words the model was taught.

    Two shapes are put in relation along the direction in which they are further apart.
    """
    if len(shapes) == 1:
        return sentence(shapes[0].name)
    a, b = shapes
    sideways = abs(a.x - b.x) > abs(a.y - b.y)
    first, second = sorted(shapes, key=lambda shape: shape.x if sideways else shape.y)
    return sentence(f"{first.name} {'left of' if sideways else 'above'} {second.name}")


def happening(shape: Shape, motion: str) -> str:
    """Say what is in a clip, in the words the model was taught."""
    return f"The {shape.color} {shape.kind} {motion}."


def sentence(words: str) -> str:
    """Return words with a capital at the start and a full stop."""
    return f"{words[0].upper()}{words[1:]}."
