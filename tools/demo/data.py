"""Questions with their answers, at random: about text, about a picture, about a clip."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from demo.pictures import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    Pixels,
    Shape,
    clip,
    draw,
    draw_number,
    place,
    place_apart,
)


@dataclass(frozen=True)
class Sample:
    """A question of one kind; `frames` holds nothing, one picture, or the frames of a clip."""

    kind: str
    question: str
    answer: str
    frames: list[Pixels] = field(default_factory=list)
    system: str | None = None

    @property
    def medium(self) -> str:
        return self.kind.partition(":")[0]


NAMES = [
    *("Ada", "Alan", "Barbara", "Claude", "Dennis", "Edsger", "Frances", "Grace"),
    *("Hedy", "Ken", "Linus", "Margaret", "Niklaus", "Radia", "Tim", "Vint"),
]
CAPITALS = {
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Egypt": "Cairo",
    "France": "Paris",
    "Greece": "Athens",
    "India": "New Delhi",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Spain": "Madrid",
}
WORDS = [*COLORS, *["apples", "books", "cards", "coins", "keys", "pears", "shells", "stamps"]]
ABILITIES = "I describe shapes, read numbers, watch short videos, recall codes and do small sums."
SMALL_TALK = {
    "Hello!": "Hello! I am a tiny demo model.",
    "Hi!": "Hello! I am a tiny demo model.",
    "Who are you?": "I am a tiny demo model. I read text, images and video.",
    "What can you do?": ABILITIES,
    "Thank you!": "You are welcome.",
}
SYSTEM = "You are a helpful assistant."
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def recall(rng: Random) -> tuple[str, str]:
    names = rng.sample(NAMES, rng.randint(2, 7))
    facts = [f"{name}'s code is {rng.randint(100, 999)}." for name in names]
    asked = rng.randrange(len(names))
    return f"{' '.join(facts)} What is {names[asked]}'s code?", facts[asked]


def capital(rng: Random) -> tuple[str, str]:
    country = rng.choice(list(CAPITALS))
    return f"What is the capital of {country}?", f"{CAPITALS[country]}."


def repeat(rng: Random) -> tuple[str, str]:
    words = " ".join(rng.sample(WORDS, rng.randint(2, 4)))
    return f"Repeat: {words}", words


def backwards(rng: Random) -> tuple[str, str]:
    letters = rng.sample(LETTERS, rng.randint(2, 5))
    return f"Spell {' '.join(letters)} backwards.", " ".join(reversed(letters))


def uppercase(rng: Random) -> tuple[str, str]:
    letters = " ".join(rng.sample(LETTERS, rng.randint(2, 5)))
    return f"Write {letters} in capitals.", letters.upper()


def small_talk(rng: Random) -> tuple[str, str]:
    return rng.choice(list(SMALL_TALK.items()))


def sort(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(2, 4))
    listed, ordered = (", ".join(map(str, row)) for row in (numbers, sorted(numbers)))
    return f"Sort these numbers: {listed}", ordered


def arithmetic(rng: Random) -> tuple[str, str]:
    a, b = sorted(rng.choices(range(100), k=2), reverse=True)
    if rng.random() < 0.5:
        return f"What is {a} - {b}?", str(a - b)
    a, b = rng.sample([a, b], 2)
    return f"What is {a} + {b}?", str(a + b)


def an(color: str) -> str:
    return f"an {color}" if color[0] in "aeiou" else f"a {color}"


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def one_shape(rng: Random) -> Shape:
    return place(rng.choice(SHAPES), rng.choice(list(COLORS)), rng.uniform(12, 36), rng)


def two_shapes(rng: Random) -> list[Shape]:
    """Two shapes of different colours and kinds, so that a question can name either by one of the two."""
    kinds = zip(rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2), strict=True)
    return place_apart(list(kinds), (13, 22), rng)


Pictured = tuple[str, str, list[Pixels]]
"""Question, answer, one picture or the frames of a clip."""


def image_color(rng: Random) -> Pictured:
    if rng.random() < 0.5:
        shape = one_shape(rng)
        shapes, question = [shape], "What color is the shape?"
    else:
        shapes = two_shapes(rng)
        shape = shapes[0]
        question = f"What color is the {shape.kind}?"
    return question, sentence(shape.color), [draw(shapes, rng.choice(BACKGROUNDS))]


def image_count(rng: Random) -> Pictured:
    count, kind, color = rng.randint(1, 6), rng.choice(SHAPES), rng.choice(list(COLORS))
    shapes = place_apart([(kind, color)] * count, (8, 13), rng)
    thing = rng.choice(["shape", kind])
    return f"How many {thing}s are there?", f"{count}.", [draw(shapes, rng.choice(BACKGROUNDS))]


def image_describe(rng: Random) -> Pictured:
    question = rng.choice(["What is in the picture?", "Describe the image."])
    background = rng.choice(BACKGROUNDS)
    if rng.random() < 0.4:
        shape = one_shape(rng)
        return question, sentence(f"{an(shape.color)} {shape.kind}"), [draw([shape], background)]
    shapes = place_apart([(rng.choice(SHAPES), rng.choice(list(COLORS))) for _ in range(2)], (13, 22), rng)
    return question, sentence(relation(*shapes)), [draw(shapes, background)]


def relation(a: Shape, b: Shape) -> str:
    """Says where two shapes are, along the direction in which they are further apart."""
    sideways = abs(a.x - b.x) > abs(a.y - b.y)
    first, second = sorted([a, b], key=lambda shape: shape.x if sideways else shape.y)
    where = "left of" if sideways else "above"
    return f"{an(first.color)} {first.kind} {where} {an(second.color)} {second.kind}"


def image_read(rng: Random) -> Pictured:
    digits = rng.randint(1, 3)
    text = str(rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
    return "Read the number.", text, [draw_number(text, rng)]


def image_shape(rng: Random) -> Pictured:
    shape = one_shape(rng)
    return "Which shape do you see?", f"A {shape.kind}.", [draw([shape], rng.choice(BACKGROUNDS))]


def image_which(rng: Random) -> Pictured:
    shapes = two_shapes(rng)
    answer = f"The {shapes[0].kind}."
    return f"Which shape is {shapes[0].color}?", answer, [draw(shapes, rng.choice(BACKGROUNDS))]


def video(rng: Random) -> Pictured:
    kind, color, motion = rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice(MOTIONS)
    question = rng.choice(["What happens in the video?", "Describe the video."])
    return question, f"The {color} {kind} {motion}.", clip(kind, color, motion, rng)


Kinds = dict[str, tuple[float, Callable[[Random], tuple[str, str] | Pictured]]]

# kind -> (how often it is asked among those of its medium, generator)
TEXT: Kinds = {
    "text: recall": (5.0, recall),
    "text: capital": (0.5, capital),
    "text: repeat": (1.0, repeat),
    "text: spell backwards": (1.0, backwards),
    "text: write in capitals": (1.0, uppercase),
    "text: small talk": (0.5, small_talk),
    "text: sort": (1.0, sort),
    "text: add, subtract": (2.0, arithmetic),
}
IMAGE: Kinds = {
    "image: color": (1.5, image_color),
    "image: count": (1.5, image_count),
    "image: describe": (3.0, image_describe),
    "image: read": (3.0, image_read),
    "image: shape": (1.0, image_shape),
    "image: which": (1.5, image_which),
}
VIDEO: Kinds = {"video: motion": (1.0, video)}
MEDIA = ["text", "image", "video"]


def ask(medium: str, rng: Random) -> Sample:
    """A random question about one medium, in a tenth of the cases after a system message."""
    table = {"text": TEXT, "image": IMAGE, "video": VIDEO}[medium]
    kind = rng.choices(list(table), [weight for weight, _ in table.values()])[0]
    question, answer, *frames = table[kind][1](rng)
    system = SYSTEM if rng.random() < 0.1 else None
    return Sample(kind, question, answer, frames[0] if frames else [], system)
