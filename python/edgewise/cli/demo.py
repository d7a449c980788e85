"""`edgewise demo`: the small model in the package answers questions like those it was trained on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgewise.cli import terminal
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


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "demo",
        help="see that it works, without a download",
        description="Asks the small model of the package questions like those it was trained on.",
    )
    parser.add_argument("--threads", type=int, help="how many to compute with")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print questions, answers as they are made, and how fast that was."""
    model = Model.from_pretrained(DEMO, threads=arguments.threads)
    tokens, seconds = 0, 0.0
    for question in QUESTIONS:
        print(terminal.bold(question))
        for piece in model.stream(question, temperature=0, enable_thinking=False):
            terminal.write(piece.text)
            if piece.usage and piece.timings:
                tokens += piece.usage.completion_tokens
                seconds += piece.timings.prefill_seconds + piece.timings.decode_seconds
        print("\n")
    rate = tokens / seconds if seconds > 0 else 0.0
    print(f"{tokens} tokens at {rate:.0f} a second, prompts included, on {model.threads} threads")
    return 0
