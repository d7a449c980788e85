"""`edgewise convert`: write a GGUF file, or any other checkpoint, as one file that opens at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgewise.cli import quantize
from edgewise.gguf import KEEP

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "convert",
        help="write a GGUF file in edgewise's own format",
        description="Writes a GGUF file, with its tokenizer and chat template, as one that opens at once. "
        "Weights stay what they are as far as the formats allow; the table at the end tells what was lost.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="file, the first of several such as a-00001-of-00003.gguf, or folder"
    )
    parser.add_argument("destination", metavar="DST", help="file to write, such as model.safetensors")
    parser.add_argument(
        "--recipe", default=KEEP, help="name or file: which tensors get which format (keep: the nearest one)"
    )
    parser.add_argument("--threads", type=int, help="how many to compute with")
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what came out."""
    return quantize.run(arguments)
