"""`edgewise demo`: the small model in the package answers questions like those it was trained on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from PIL import Image

from edgewise.cli import picture, terminal
from edgewise.demo import drawing
from edgewise.hub import DEMO
from edgewise.model import Model

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands

QUESTIONS = (
    "Hello!",
    "What is the capital of France?",
    "Hedy's code is 230. Tim's code is 682. Vint's code is 801. What is Hedy's code?",
    "Sort these numbers: 41, 17",
    "Write v q o c b in capitals.",
    "Repeat: purple coins cards apples",
    "What can you do?",
)
PICTURE_COLUMNS = 40
FRAME_COLUMNS = 19
"""Four frames with a column between them fit into 80."""


@dataclass
class Spent:
    """Tokens of the answers, and the time from prompt to end."""

    tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.tokens / self.seconds if self.seconds > 0 else 0.0
        return f"{self.tokens} tokens at {rate:.0f} a second, prompts included,"


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "demo",
        help="see that it works, without a download",
        description=(
            "Asks the small model of the package questions like those it was trained on: about text, and "
            "about a picture and a clip it draws, which a terminal with all colours shows."
        ),
    )
    parser.add_argument("--threads", type=int, help="how many to compute with")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="for another picture and clip")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write picture.png and clip.gif there, over older ones"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print questions, answers as they are made, and how fast that was."""
    model = Model.from_pretrained(DEMO, threads=arguments.threads)
    spent = Spent()
    for question in QUESTIONS:
        print(terminal.bold(question))
        _answer(model, question, spent)
        print("\n")
    rng = Random(arguments.seed)
    _ask_about_picture(model, rng, arguments.save, spent)
    _ask_about_clip(model, rng, arguments.save, spent)
    print(f"{spent} on {model.threads} threads")
    return 0


def _answer(model: Model, question: str, spent: Spent, **media: Any) -> None:
    for piece in model.stream(question, temperature=0, enable_thinking=False, **media):
        terminal.write(piece.text)
        if piece.usage and piece.timings:
            times = piece.timings
            spent.tokens += piece.usage.completion_tokens
            spent.seconds += times.vision_seconds + times.prefill_seconds + times.decode_seconds


def _ask_about_picture(model: Model, rng: Random, folder: Path | None, spent: Spent) -> None:
    shapes = drawing.two_shapes(rng)
    image = drawing.draw(shapes, rng.choice(drawing.BACKGROUNDS))
    if folder is not None:
        _save([image], folder / "picture.png")
    _show([image], PICTURE_COLUMNS)
    _compare(model, "Describe the image.", drawing.description(shapes), spent, images=image)


def _ask_about_clip(model: Model, rng: Random, folder: Path | None, spent: Spent) -> None:
    motion, background = rng.choice(drawing.MOTIONS), rng.choice(drawing.BACKGROUNDS)
    shapes = drawing.moving_shape(rng, motion)
    frames = [drawing.draw([shape], background) for shape in shapes]
    if folder is not None:
        _save(frames, folder / "clip.gif")
    _show(frames[::2], FRAME_COLUMNS)
    truth = drawing.happening(shapes[0], motion)
    media = {"videos": [frames], "source_fps": drawing.FRAMES_PER_SECOND}
    _compare(model, "What happens in the video?", truth, spent, **media)


def _compare(model: Model, question: str, truth: str, spent: Spent, **media: Any) -> None:
    """Print the model's answer below what was drawn."""
    print(terminal.bold(question))
    print(f"drawn:  {truth}")
    terminal.write("answer: ")
    _answer(model, question, spent, **media)
    print("\n")


def _show(images: Sequence[Image.Image], columns: int) -> None:
    if picture.shown_on(sys.stdout):
        print(picture.render(images, columns))


def _save(frames: list[Image.Image], file: Path) -> None:
    """Write a picture, or an animation that starts again at its end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    animation: dict[str, Any] = {}
    if len(frames) > 1:
        milliseconds = 1000 / drawing.FRAMES_PER_SECOND
        animation = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    frames[0].save(file, **animation)
    print(f"saved {file}")
