"""Questions about pictures and clips that the demo model has never seen, each with its true answer.

`ask(kind, index)` gives the same question and the same pixels wherever it runs: the random numbers come from
`random.Random` seeded with a text, the shapes from `edgewise.demo.drawing`, the digits from a recorded strip
of glyphs, because what Pillow makes of a font depends on the FreeType it was built with. `fingerprint` tells
whether the pixels are those that the original code was asked about.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image

import golden
from edgewise.demo.drawing import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SIDE,
    Shape,
    description,
    draw,
    equal_shapes,
    happening,
    moving_shape,
    one_shape,
    sentence,
    two_shapes,
)

DIGITS_FILE = golden.FOLDER / "demo_digits.png"
SEED = "fresh 1"
MARGIN = 6
"""Between a number and the edge of the picture."""


@dataclass(frozen=True)
class Question:
    """A question about one picture, or about the frames of a clip."""

    text: str
    truth: str
    frames: list[Image.Image]


def color(rng: Random) -> Question:
    shapes, thing = one_shape(rng), "shape"
    if rng.random() < 0.5:
        shapes = two_kinds(rng)
        thing = shapes[0].kind
    return Question(f"What color is the {thing}?", sentence(shapes[0].color), picture(shapes, rng))


def count(rng: Random) -> Question:
    number = rng.randint(1, 6)
    shapes = equal_shapes(rng, number)
    thing = rng.choice(["shape", shapes[0].kind])
    return Question(f"How many {thing}s are there?", f"{number}.", picture(shapes, rng))


def describe(rng: Random) -> Question:
    shapes = one_shape(rng) if rng.random() < 0.4 else two_shapes(rng)
    text = rng.choice(["What is in the picture?", "Describe the image."])
    return Question(text, description(shapes), picture(shapes, rng))


def read(rng: Random) -> Question:
    digits = rng.randint(1, 3)
    number = str(rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
    return Question("Read the number.", number, [draw_number(number, rng)])


def shape(rng: Random) -> Question:
    shapes = one_shape(rng)
    return Question("Which shape do you see?", f"A {shapes[0].kind}.", picture(shapes, rng))


def which(rng: Random) -> Question:
    shapes = two_shapes(rng)
    return Question(f"Which shape is {shapes[0].color}?", f"The {shapes[0].kind}.", picture(shapes, rng))


def video(rng: Random) -> Question:
    motion, background = rng.choice(MOTIONS), rng.choice(BACKGROUNDS)
    shapes = moving_shape(rng, motion)
    text = rng.choice(["What happens in the video?", "Describe the video."])
    return Question(text, happening(shapes[0], motion), [draw([shape], background) for shape in shapes])


def picture(shapes: list[Shape], rng: Random) -> list[Image.Image]:
    return [draw(shapes, rng.choice(BACKGROUNDS))]


def two_kinds(rng: Random) -> list[Shape]:
    """Two shapes of which the kind names one."""
    while True:
        shapes = two_shapes(rng)
        if shapes[0].kind != shapes[1].kind:
            return shapes


@cache
def digit_strip() -> Image.Image:
    """How much ink is on each pixel of the digits 0 to 9, side by side in cells of equal width."""
    with Image.open(DIGITS_FILE) as strip:
        return strip.convert("L")


def draw_number(number: str, rng: Random) -> Image.Image:
    """Black digits anywhere, but not close to the edge."""
    strip = digit_strip()
    width = strip.width // 10
    left = rng.randint(MARGIN, SIDE - MARGIN - width * len(number))
    top = rng.randint(MARGIN, SIDE - MARGIN - strip.height)
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(BACKGROUNDS))
    for place, digit in enumerate(map(int, number)):
        ink = strip.crop((digit * width, 0, (digit + 1) * width, strip.height))
        image.paste(COLORS["black"], (left + place * width, top), ink)
    return image


KINDS: dict[str, Callable[[Random], Question]] = {
    "image: colour": color,
    "image: count": count,
    "image: describe": describe,
    "image: read": read,
    "image: shape": shape,
    "image: which shape": which,
    "video: motion": video,
}


def ask(kind: str, index: int) -> Question:
    """The question number `index` of its kind."""
    return KINDS[kind](Random(f"{SEED}, {kind}, {index}"))


def fingerprint(questions: Iterable[Question]) -> str:
    """A digest of the words and pixels of questions."""
    digest = hashlib.blake2b(digest_size=8)
    for question in questions:
        digest.update(f"{question.text}\n{question.truth}\n{len(question.frames)}\n".encode())
        for frame in question.frames:
            digest.update(frame.tobytes())
    return digest.hexdigest()
