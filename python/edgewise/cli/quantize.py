"""`edgewise quantize`: write a checkpoint with smaller weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import _native, calibration, checks, hub
from edgewise.cli import terminal
from edgewise.progress import duration, shown

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "quantize",
        help="write a smaller copy of a model",
        description="Writes one file with the weights of a model converted, and with its small files inside.",
    )
    parser.add_argument("source", metavar="SRC", help="folder, file or hub id")
    parser.add_argument("destination", metavar="DST", help="file to write, such as model-int4.safetensors")
    parser.add_argument(
        "--recipe", default="int4", help="name or file: which tensors get which format (int4)"
    )
    parser.add_argument(
        "--calibrate",
        metavar="TEXT",
        help="file of plain text, UTF-8, such as the model will read: INT4 levels are chosen by what the "
        "model computes from it, and losses with and without are printed, measured on the text's last fifth",
    )
    parser.add_argument(
        "--calibrate-tokens",
        type=int,
        default=calibration.TOKENS,
        metavar="N",
        help=f"the most tokens to calibrate on ({calibration.TOKENS})",
    )
    add_writing(parser)
    return parser


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Add what all commands that write a model have in common."""
    parser.add_argument("--revision", help="branch, tag or commit of a repository on the hub")
    parser.add_argument("--threads", type=int, help="how many to compute with")
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")


def run(arguments: argparse.Namespace) -> int:
    """Quantise, and say what came out."""
    if arguments.calibrate is not None:
        from edgewise.cli import calibrate

        return calibrate.run(arguments)
    write(
        arguments,
        lambda source, destination, threads, progress: _native.quantize(
            source, destination, arguments.recipe, threads, progress
        ),
    )
    return 0


def write(
    arguments: argparse.Namespace,
    convert: Callable[[str, str, int | None, Callable[[int, int, str], None] | None], dict[str, Any]],
) -> dict[str, Any]:
    """Fetch the source, convert it, say what came out, and return what `convert` told."""
    destination = free(Path(arguments.destination), arguments.force)
    threads = checks.threads(arguments.threads)
    source = fetched(arguments)
    start = time.monotonic()
    with shown(True, "converting") as progress:
        report = convert(source, str(destination), threads, progress)
    print(closing(destination, report, time.monotonic() - start))
    return report


def fetched(arguments: argparse.Namespace) -> str:
    """Return the folder or file of the source, fetched from the hub if it is an id."""
    with shown(True, "fetching") as progress:
        return hub.resolve(arguments.source, arguments.revision, progress)


def free(destination: Path, force: bool) -> Path:
    """Return the file to write; an error if it is a folder, or there already and `force` is not given."""
    if destination.is_dir():
        raise IsADirectoryError(f"{destination}: is a folder; name the file to write")
    if destination.exists() and not force:
        raise FileExistsError(f"{destination}: is there already; --force replaces it")
    return destination


def closing(destination: Path, report: dict[str, Any], seconds: float) -> str:
    """Say what was written, in what time, and what each format lost."""
    before, after = report["source_bytes"], report["file_bytes"]
    return (
        f"{destination}: {terminal.size(after)} in {duration(seconds)}, {after / before:.0%} of the "
        f"{terminal.size(before)} before\n{terminal.formats_table(report['formats'])}"
    )
