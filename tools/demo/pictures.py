"""Pictures and clips of plain shapes, and of numbers, 96 x 96 pixels."""

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 96
FRAMES = 8
FRAMES_PER_SECOND = 2

Pixels = NDArray[np.uint8]
"""[height, width, 3]"""
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
BACKGROUNDS: list[Rgb] = [(255, 255, 255), (235, 235, 235), (225, 235, 245), (250, 245, 230)]
SHAPES = ["circle", "square", "triangle", "star"]
MOTIONS = ["moves left", "moves right", "moves up", "moves down", "stays still", "grows", "shrinks"]


@dataclass(frozen=True)
class Shape:
    """A shape of one colour; `radius` is that of the circle around it, in pixels."""

    kind: str
    color: str
    x: float
    y: float
    radius: float


def outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners of a square, triangle or star."""
    corners = {"square": (4, 45.0), "triangle": (3, -90.0), "star": (10, -90.0)}
    count, first = corners[shape.kind]
    points = []
    for corner in range(count):
        angle = math.radians(first + 360.0 * corner / count)
        inner = shape.kind == "star" and corner % 2 == 1
        reach = shape.radius * (0.4 if inner else 1.0)
        points.append((shape.x + reach * math.cos(angle), shape.y + reach * math.sin(angle)))
    return points


def draw(shapes: list[Shape], background: Rgb) -> Pixels:
    image = Image.new("RGB", (SIDE, SIDE), background)
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        color = COLORS[shape.color]
        if shape.kind == "circle":
            x, y, r = shape.x, shape.y, shape.radius
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=color)
        else:
            canvas.polygon(outline(shape), fill=color)
    return np.asarray(image)


def draw_number(text: str, rng: Random) -> Pixels:
    """Digits in Pillow's own font, anywhere they fit."""
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(BACKGROUNDS))
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=rng.uniform(28, 46))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    x = rng.uniform(3, max(4, SIDE - 3 - (right - left))) - left
    y = rng.uniform(3, max(4, SIDE - 3 - (bottom - top))) - top
    canvas.text((x, y), text, font=font, fill=COLORS[rng.choice(["black", "red", "blue", "green", "purple"])])
    return np.asarray(image)


def place(kind: str, color: str, radius: float, rng: Random) -> Shape:
    """A shape that lies wholly in the picture."""
    low, high = radius + 1, SIDE - radius - 1
    return Shape(kind, color, rng.uniform(low, high), rng.uniform(low, high), radius)


def place_apart(kinds: list[tuple[str, str]], sizes: tuple[float, float], rng: Random) -> list[Shape]:
    """Shapes of the given (kind, colour) that do not touch; all is drawn again when one finds no room."""
    while True:
        shapes: list[Shape] = []
        for kind, color in kinds:
            for _ in range(50):
                shape = place(kind, color, rng.uniform(*sizes), rng)
                if all(distance(shape, other) > shape.radius + other.radius + 2 for other in shapes):
                    shapes.append(shape)
                    break
        if len(shapes) == len(kinds):
            return shapes


def distance(a: Shape, b: Shape) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def clip(kind: str, color: str, motion: str, rng: Random) -> list[Pixels]:
    """Eight frames of one shape that moves, stays, grows or shrinks."""
    background = rng.choice(BACKGROUNDS)
    return [draw([shape], background) for shape in poses(kind, color, motion, rng)]


def poses(kind: str, color: str, motion: str, rng: Random) -> list[Shape]:
    if motion in ("grows", "shrinks"):
        small, large = rng.uniform(7, 11), rng.uniform(22, 32)
        shape = place(kind, color, large, rng)
        radii = np.linspace(small, large, FRAMES)
        return [replace(shape, radius=float(r)) for r in (radii if motion == "grows" else radii[::-1])]
    shape = place(kind, color, rng.uniform(9, 16), rng)
    if motion == "stays still":
        return [shape] * FRAMES
    axis = "x" if motion in ("moves left", "moves right") else "y"
    low, high = shape.radius + 1, SIDE - shape.radius - 1
    travel = rng.uniform(0.55, 1.0) * (high - low)
    start = rng.uniform(low, high - travel)
    path = np.linspace(start, start + travel, FRAMES)
    if motion in ("moves left", "moves up"):
        path = path[::-1]
    return [replace(shape, x=float(at)) if axis == "x" else replace(shape, y=float(at)) for at in path]
