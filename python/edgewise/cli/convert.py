"""`edgewise convert`: write what another program quantised, such as a GGUF file, as a file of ours."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from edgewise import _native
from edgewise.cli import terminal
from edgewise.cli.quantize import add_writing, write

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "convert",
        help="write what another program quantised as a file that opens at once",
        description=(
            "Writes a GGUF file, or what GPTQ, AWQ, compressed-tensors, FP8 or MLX quantised, as one file in "
            "edgewise's own format, with tokenizer and chat template inside. Weights keep their own levels "
            "where our blocks have the same grid; the table at the end tells what was lost. Such a model "
            "opens without this too, but is converted each time. For other formats there is 'quantize'."
        ),
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="folder, file (any one of several that are one model), or hub id such as org/name:Q4_K_M",
    )
    parser.add_argument("destination", metavar="DST", help="file to write, such as model.safetensors")
    add_writing(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what came out."""
    report = write(arguments, _native.convert)
    print(_losses(report["formats"]))
    return 0


def _losses(formats: dict[str, dict[str, float]]) -> str:
    """Say what each format lost of the weights that were quantised, or stood unpacked beside them."""
    rows = [["format", "lost"]]
    for name, part in formats.items():
        lost = math.sqrt(part["relative_squared_error"])
        rows.append([name, f"{lost:.2%}" if lost else "nothing"])
    return terminal.table(rows)
