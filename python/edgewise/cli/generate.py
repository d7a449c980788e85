"""`edgewise generate`: one prompt, one answer."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from edgewise import inputs, messages
from edgewise.cli import terminal
from edgewise.cli.arguments import (
    add_generation,
    add_media,
    add_model,
    generation_arguments,
    open_model,
)
from edgewise.model import Model

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser("generate", help="answer one prompt", description="Answers one prompt.")
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="a question; - reads it from stdin")
    add_media(parser)
    add_generation(parser)
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it stands, without a template"
    )
    parser.add_argument("--json", action="store_true", help="print the whole result as one JSON object")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities of N tokens each"
    )
    parser.add_argument("--stats", action="store_true", help="print speeds on stderr")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the answer as it is made, or the result as JSON."""
    if arguments.logprobs is not None and not arguments.json:
        raise ValueError("--logprobs: only shown with --json")
    prompt = _prompt(arguments)
    model = open_model(arguments)
    options = generation_arguments(arguments) | {"raw": arguments.raw, "logprobs": arguments.logprobs}
    options |= {"images": arguments.images, "videos": arguments.videos}
    if arguments.json:
        result = model.generate(prompt, **options)
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return 0
    _stream(model, prompt, options, arguments.stats)
    return 0


def _stream(model: Model, prompt: Any, options: dict[str, Any], stats: bool) -> None:
    written = ""
    for piece in model.stream(prompt, **options):
        terminal.write(piece.text)
        written = piece.text or written
        if stats and piece.usage and piece.timings:
            print(f"\n{terminal.speed(piece.usage, piece.timings)}", file=sys.stderr)
    if not written.endswith("\n"):
        terminal.write("\n")


def _prompt(arguments: argparse.Namespace) -> Any:
    text = arguments.prompt
    if text == "-":
        text = sys.stdin.read().removesuffix("\n")
    if arguments.system is None:
        return text
    if arguments.raw:
        raise ValueError("--system: has no place in a raw prompt")
    question = messages.question(text, arguments.images, inputs.video_list(arguments.videos))
    return [{"role": "system", "content": arguments.system}, *question]
