"""Parses the command line, runs the command, and turns errors into one line."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from collections.abc import Callable, Sequence

from edgewise import __version__
from edgewise.cli import bench, chat, convert, demo, doctor, generate, info, perplexity, quantize, terminal

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (without the program's name) and return its exit code.

    0 is success, 1 an error, 2 a command line that cannot be understood.
    """
    arguments = _parser().parse_args(argv)
    _allow_any_character()
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            raise
        terminal.error(_message(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgewise", description="Runs the Qwen3.5 family on this computer's CPU."
    )
    parser.add_argument("--version", action="version", version=f"edgewise {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (generate, chat, quantize, convert, perplexity, info, doctor, bench, demo):
        added = command.add_to(commands)
        added.add_argument("--debug", action="store_true", help="show where an error comes from")
        added.set_defaults(run=command.run)
    return parser


def _allow_any_character() -> None:
    """Let a terminal that does not speak Unicode show `?` for what it has no character for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


def _message(error: Exception) -> str:
    if isinstance(error, OSError | ValueError | TypeError | ArithmeticError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _discard_output() -> None:
    """Send what is still buffered nowhere: the reader has gone, and Python would complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:  # stdout has been replaced by something that is no file
        return
